import { adapterContract, type AdapterVerbs } from '../../testing/src/adapter-contract.ts';
import {
  activateAdapters,
  adapt,
  deleteAdapter,
  dora,
  loadAdapter,
  loftq,
  lora,
  lqLora,
  mergeAdapter,
  mergeAndUnload,
  pissa,
  saveAdapter,
  unmergeAdapter,
  type AdapterMethod,
} from '../src/index.ts';
import { integers } from './integers.ts';

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

// Codes take no change without saying how: the merge widens them.
const quantized = adapterContract({
  ...verbs,
  save: (set, target) => saveAdapter(set, target, { form: 'native' }),
  merge: (model, names) => mergeAdapter(model, names, { into: 'dense' }),
  mergeForGood: (model) => mergeAndUnload(model, undefined, { into: 'dense' }),
} satisfies AdapterVerbs<AdapterMethod>);
const codes = { trained: pair, rewrites: 'quantized', startsAtBase: false, mixes: false } as const;

quantized('loftq', { make: () => lora({ rank: 2, alpha: 6, init: loftq({ quantizer: integers(4, 8), iterations: 2 }) }), ...codes });
quantized('lq-lora', {
  make: () => lora({ rank: 2, alpha: 6, init: lqLora({ quantizers: [integers(2, 8), integers(4, 8), integers(8, 16)], bits: 8 }) }),
  ...codes,
});
quantized('pissa of codes', {
  make: () => lora({ rank: 2, init: pissa({ quantizer: integers(4, 8) }) }),
  ...codes,
  seeded: false,
});
