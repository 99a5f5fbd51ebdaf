// What a user names: every method of this package and the types of its options. `niwaki` exports this list as it stands.
export type { AmountOptions } from './amount.ts';
export type { PruneMethodOptions } from './pruner.ts';
export { magnitude, type MagnitudeOptions } from './magnitude.ts';
export { wanda, type WandaOptions } from './wanda.ts';
export { sparsegpt, type SparseGptOptions } from './sparsegpt.ts';
export { dsnot, type DsnotOptions } from './dsnot.ts';
export { lisa, type LisaOptions } from './lisa.ts';
export { s2ft, slicesOf, type S2ftOptions } from './s2ft.ts';
export type { SliceStrategy } from './choose-slices.ts';
export type { Slices } from './slices.ts';
export { spiel, spielParticipant, type SpielOptions } from './spiel.ts';
export type { ReselectionOptions } from './reselection.ts';
export { taskVectorOf, type SparseEntries } from './task-vector.ts';
