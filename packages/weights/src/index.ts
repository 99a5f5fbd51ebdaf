export * from './call.ts';
export * from './weight.ts';
