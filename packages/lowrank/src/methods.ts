// What a user names: every method of this package and the types of its options. `niwaki` exports this list as it stands.
export { dora, lora } from './lora.ts';
export type { LoraOptions } from './lora-options.ts';
export { pissa, type PissaOptions } from './pissa.ts';
export { olora, type OloraOptions } from './olora.ts';
export { loftq, type LoftqOptions } from './loftq.ts';
export { lqLora, type LqLoraAllocation, type LqLoraOptions } from './lq-lora.ts';
export { loraPlus, type LoraPlusOptions } from './lora-plus.ts';
export { combineAdapters, type Combined, type CombineOptions } from './combine.ts';
export { ia3, type Ia3Options } from './ia3.ts';
export { lnTuning, type LnTuningOptions } from './ln-tuning.ts';
export { bottleneck, type BottleneckOptions } from './bottleneck.ts';
export { compacter, type CompacterOptions } from './compacter.ts';
export { promptTuning, type PromptTuningOptions } from './prompt-tuning.ts';
export { prefixTuning, type PrefixTuningOptions } from './prefix-tuning.ts';
export { qst, type QstOptions } from './qst.ts';
export { galore, type GaloreOptions, type ProjectedAdamOptions, type ProjectionKind, type ProjectionOptions } from './galore.ts';
export { int8Weights, qGalore, type Int8WeightsOptions, type LazyOptions, type QGaloreOptions } from './q-galore.ts';
export { frugal, type FrugalOptions, type SplitOptions } from './frugal.ts';
