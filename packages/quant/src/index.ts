export * from './codebooks.ts';
export type { Codebook4MethodOptions } from './codebook-method.ts';
export * from './nf4.ts';
export * from './fp4.ts';
export * from './quantize.ts';
export * from './format-bnb.ts';
