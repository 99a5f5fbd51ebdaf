// What a user names: optimizers, what they are put together from, schedules. `niwaki` exports this list as it stands.
export { adamw, type AdamwOptions } from './adamw.ts';
export { agedAdamw, type AgedAdamwOptions } from './aged-adamw.ts';
export { lion, type LionOptions } from './lion.ts';
export { sgd, type SgdOptions } from './sgd.ts';
export { sm3, type Sm3Options } from './sm3.ts';
export { chain, type Chain } from './chain.ts';
export { scaleByAdam, type AdamOptions } from './scale-by-adam.ts';
export { scaleByAgedAdam, type AgedAdamOptions } from './scale-by-aged-adam.ts';
export { scaleByLion, type LionDirectionOptions } from './scale-by-lion.ts';
export { scaleByMomentum, type MomentumOptions } from './scale-by-momentum.ts';
export { scaleBySm3, type Sm3DirectionOptions } from './scale-by-sm3.ts';
export { scaleByLearningRate } from './scale-by-learning-rate.ts';
export { clipByEntry, clipByGlobalNorm } from './clip.ts';
export { addDecayedWeights, addL2, type DecayOrder } from './decay.ts';
export { groups, type Group, type PerParameter, type Selection } from './groups.ts';
export { blockwiseState, type BlockwiseStateOptions, type StateStorage } from './blockwise-state.ts';
export { constant, cosine, linear, wsd, type DecayOptions, type Schedule, type WarmupOptions, type WsdOptions } from './schedules.ts';
