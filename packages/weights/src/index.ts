export * from './call.ts';
export * from './format.ts';
export * from './weight.ts';
