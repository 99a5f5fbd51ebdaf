import type { AdapterMethod } from '@niwaki/engine';
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
} from '../../lowrank/src/index.ts';
import { adapterFiles } from '../src/index.ts';

/** What puts adapters on a model, whatever package their method is from. */
export const verbs: AdapterVerbs<AdapterMethod> = {
  adapt,
  save: saveAdapter,
  load: (model, files, options) => loadAdapter(model, files, { ...options, types: adapterFiles }),
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: (model) => mergeAndUnload(model),
  swap: swapAdapter,
};
