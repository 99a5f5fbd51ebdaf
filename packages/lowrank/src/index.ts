export { adapt, type AdaptOptions } from './adapt.ts';
export type { AdapterMethod, Binding, FileFields, PeftSet } from './adapter-method.ts';
export type { InitContext, Initializer, InitialPair } from './initialization.ts';
export type { LoraAdapter, ScalableAdapter } from './lora-adapter.ts';
export { loraScale, type LoraOptions, type LoraSettings, type TargetOptions } from './lora-options.ts';
export { lora } from './lora.ts';
export { defaultTargetsOf, endsWithName, layerOf, targetSites, type TargetModules } from './targets.ts';
export type { Warning } from './warning.ts';
