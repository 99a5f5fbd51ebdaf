import {
  activateAdapters,
  adapt,
  deleteAdapter,
  loadAdapter,
  mergeAdapter,
  mergeAndUnload,
  saveAdapter,
  swapAdapter,
  unmergeAdapter,
  type AdapterFile,
} from '@niwaki/peft';

/** What puts adapters on a model. */
export interface Verbs {
  readonly adapt: typeof adapt;
  readonly save: typeof saveAdapter;
  readonly load: typeof loadAdapter;
  readonly activate: typeof activateAdapters;
  readonly remove: typeof deleteAdapter;
  readonly merge: typeof mergeAdapter;
  readonly unmerge: typeof unmergeAdapter;
  readonly mergeForGood: typeof mergeAndUnload;
  readonly swap: typeof swapAdapter;
}

/** The same, where files of these types are known. */
export const adapterVerbs = (types: readonly AdapterFile[]): Verbs => ({
  adapt,
  save: saveAdapter,
  load: (model, source, options) => loadAdapter(model, source, { types, ...options }),
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: mergeAndUnload,
  swap: (model, name, source, options) => swapAdapter(model, name, source, { types, ...options }),
});
