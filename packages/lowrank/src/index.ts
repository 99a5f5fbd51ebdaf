export { adapterFiles } from './adapter-files.ts';
export type { InitContext, Initializer, InitialPair, InitSite } from './initialization.ts';
export type { LoraAdapter } from './lora-adapter.ts';
export { loraScale, type LoraOptions, type LoraSettings } from './lora-options.ts';
export { dora, lora } from './lora.ts';
export { pissa, type PissaOptions } from './pissa.ts';
export { olora, type OloraOptions } from './olora.ts';
export { loftq, type LoftqOptions } from './loftq.ts';
export { lqLora, type LqLoraAllocation, type LqLoraOptions } from './lq-lora.ts';
export { loraPlus, type LoraPlusOptions } from './lora-plus.ts';
export { allocate, type Allocation, type Choice } from './allocate.ts';
export { ia3, type Ia3Options } from './ia3.ts';
export { lnTuning, type LnTuningOptions } from './ln-tuning.ts';
export { bottleneck, type BottleneckOptions } from './bottleneck.ts';
export { compacter, type CompacterOptions } from './compacter.ts';
export { hypercomplex, type HypercomplexFactors } from './hypercomplex.ts';
export { promptTuning, type PromptTuningOptions } from './prompt-tuning.ts';
export { prefixTuning, type PrefixTuningOptions } from './prefix-tuning.ts';
export { qst, type QstOptions } from './qst.ts';
export { combineAdapters, type Combined, type CombineOptions } from './combine.ts';
export {
  galore,
  projectGradients,
  type GaloreOptions,
  type ProjectedAdamOptions,
  type ProjectionKind,
  type ProjectionOptions,
} from './galore.ts';
export { int8Weights, lazyPace, qGalore, type Int8WeightsOptions, type LazyOptions, type QGaloreOptions } from './q-galore.ts';
export { frugal, splitGradients, type FrugalOptions, type SplitOptions } from './frugal.ts';
export { coordinateSubspace, type Coordinates } from './coordinate-subspace.ts';
export { codedSubspace, type BasisCode } from './coded-subspace.ts';
export { inSubspace, type Pace, type Rest, type Subspace, type SubspaceOptions } from './subspace.ts';
export { inTurns, type TurnOrder, type TurnsOptions } from './turns.ts';
export { spectralSubspace, type Side } from './spectral-subspace.ts';
