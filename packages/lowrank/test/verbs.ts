import type { AdapterVerbs } from '../../testing/src/adapter-contract.ts';
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
  type AdapterMethod,
} from '../src/index.ts';

/** What the contract of adapters calls, of this package. */
export const verbs: AdapterVerbs<AdapterMethod> = {
  adapt,
  save: saveAdapter,
  load: loadAdapter,
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: (model) => mergeAndUnload(model),
  swap: swapAdapter,
};
