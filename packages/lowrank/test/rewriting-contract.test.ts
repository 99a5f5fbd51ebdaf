import { adapterContract, type AdapterVerbs } from '../../testing/src/adapter-contract.ts';
import {
  activateAdapters,
  adapt,
  deleteAdapter,
  dora,
  loadAdapter,
  lora,
  mergeAdapter,
  mergeAndUnload,
  pissa,
  saveAdapter,
  unmergeAdapter,
  type AdapterMethod,
} from '../src/index.ts';

const verbs: AdapterVerbs<AdapterMethod> = {
  adapt,
  save: saveAdapter,
  saveForTraining: (set, target) => saveAdapter(set, target, { form: 'native' }),
  load: loadAdapter,
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: (model) => mergeAndUnload(model),
};

const residual = adapterContract(verbs);
const pair = ([out, width]: readonly [number, number]): number => 2 * (out + width);

residual('pissa', {
  make: () => lora({ rank: 2, alpha: 6, init: 'pissa' }),
  trained: pair,
  rewrites: 'residual',
  mixes: false,
  seeded: false,
});
residual('pissa of rslora', {
  make: () => lora({ rank: 2, rslora: true, init: pissa() }),
  at: ['q_proj', 'down_proj'],
  trained: pair,
  rewrites: 'residual',
  mixes: false,
  seeded: false,
});
residual('olora', {
  make: () => lora({ rank: 2, alpha: 6, init: 'olora' }),
  trained: pair,
  rewrites: 'residual',
  mixes: false,
  seeded: false,
});
residual('dora from pissa', {
  make: () => dora({ rank: 2, alpha: 6, init: 'pissa' }),
  at: ['q_proj', 'down_proj'],
  trained: (shape) => pair(shape) + shape[0],
  rewrites: 'residual',
  mixes: false,
  seeded: false,
  exactGradient: false,
});
