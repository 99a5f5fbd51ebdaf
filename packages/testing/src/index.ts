export * from './shared.ts';
export * from './tiny-llama.ts';
export * from './shared-tensors.ts';
export * from './byte-tokenizer.ts';
