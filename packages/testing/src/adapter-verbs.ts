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
  type AdapterMethod,
} from '@niwaki/peft';
import type { AdapterVerbs } from './adapter-contract.ts';

/** What puts adapters on a model, with the files of these types. */
export interface Verbs extends AdapterVerbs<AdapterMethod> {
  readonly load: typeof loadAdapter;
  readonly swap: typeof swapAdapter;
}

export const adapterVerbs = (types: readonly AdapterFile[]): Verbs => ({
  adapt,
  save: saveAdapter,
  load: (model, source, options) => loadAdapter(model, source, { types, ...options }),
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: (model) => mergeAndUnload(model),
  swap: (model, name, source, options) => swapAdapter(model, name, source, { types, ...options }),
});
