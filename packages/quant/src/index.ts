export * from './methods.ts';
export * from './codebooks.ts';
export * from './quantize.ts';
export * from './format-bnb.ts';
export * from './format-bnb8.ts';
export * from './format-gptq.ts';
export * from './format-awq.ts';
export * from './formats.ts';
