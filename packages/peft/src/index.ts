export * from './adapter-method.ts';
export {
  adapterFile,
  layerNumbers,
  moduleNames,
  wholeCount,
  type AdapterFile,
  type AdapterFileSpec,
  type CheckedFields,
  type ReadConfig,
} from './adapter-file.ts';
export { adapt, checkName, fieldsFor, targetsFor, type AdaptOptions } from './adapt.ts';
export { defaultTargetsOf, endsWithName, layerOf, targetSites, type TargetModules } from './targets.ts';
export { currentRows } from './trainable-tokens.ts';
export { fingerprintField } from './fingerprint.ts';
export { checkRewritable } from './rewritten.ts';
export { activateAdapters, adapterNamed, deleteAdapter, setAdapterScale, type ActivateOptions } from './manage.ts';
export { forgetOriginals, mergeAdapter, mergeAndUnload, mergedAdapters, unmergeAdapter, type MergeReport } from './merge.ts';
export type { MergedSiteReport, MergeOptions } from './merge-rewrite.ts';
export { swapAdapter, type SwapOptions } from './swap.ts';
export { loadAdapter, type LoadAdapterOptions } from './files/load.ts';
export { saveAdapter, type SaveAdapterOptions } from './files/save.ts';
export type { AdapterSource } from './files/folders.ts';
export * from './files/errors.ts';
