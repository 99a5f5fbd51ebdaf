export * from '@niwaki/tensor';
export * from '@niwaki/backend';
export * from '@niwaki/weights';
export * from '@niwaki/nn';
export * from '@niwaki/optim';
export * from '@niwaki/engine';
export * from '@niwaki/hub';
export * from '@niwaki/quant';
export * from '@niwaki/peft';
export * from '@niwaki/lowrank';
export * from '@niwaki/sparse';
export * from '@niwaki/train';
// Wired with everything: these take the place of the bare ones.
export { load, loadAdapter, swapAdapter } from './load.ts';
export { adapterFiles } from './adapter-files.ts';
export { loadResult, recipeKit, runRecipe } from './kit.ts';
export { knownModelResolver, knownModels } from './known-models.ts';
export { measureSpeed, type SpeedOptions, type SpeedRow } from './measure-speed.ts';
export { saveQuantized, saveStored, type SaveQuantizedOptions } from './save-quantized.ts';
// Names that two packages have: what is meant here.
export { checkBlockSize } from '@niwaki/weights';
export { dynamicMap } from '@niwaki/quant';
