export * from './prune.ts';
export type { AmountOptions, Amount } from './amount.ts';
export type { PrunerChoice, HostMatrix, PruneMethodOptions, Pruner, Store } from './pruner.ts';
export * from './magnitude.ts';
export { wanda, type WandaOptions } from './wanda.ts';
export { sparsegpt, type SparseGptOptions } from './sparsegpt.ts';
export { dsnot, type DsnotOptions } from './dsnot.ts';
export * from './lisa.ts';
