import { adapterContract } from '../../testing/src/adapter-contract.ts';
import {
  activateAdapters,
  adapt,
  deleteAdapter,
  dora,
  ia3,
  loadAdapter,
  lora,
  mergeAdapter,
  mergeAndUnload,
  saveAdapter,
  unmergeAdapter,
} from '../src/index.ts';

const contract = adapterContract({
  adapt,
  save: saveAdapter,
  load: loadAdapter,
  activate: activateAdapters,
  remove: deleteAdapter,
  merge: mergeAdapter,
  unmerge: unmergeAdapter,
  mergeForGood: (model) => mergeAndUnload(model),
});

contract('lora', { make: () => lora({ rank: 2, alpha: 6 }), trained: ([out, width]) => 2 * (out + width) });
contract('lora with dropout', { make: () => lora({ rank: 2, alpha: 6, dropout: 0.2 }), trained: ([out, width]) => 2 * (out + width) });
contract('rslora', {
  make: () => lora({ rank: 4, rslora: true }),
  at: ['q_proj', 'down_proj'],
  trained: ([out, width]) => 4 * (out + width),
});
contract('lora, orthogonal start', { make: () => lora({ rank: 2, init: 'orthogonal' }), trained: ([out, width]) => 2 * (out + width) });
contract('lora, random start', {
  make: () => lora({ rank: 2, init: false }),
  trained: ([out, width]) => 2 * (out + width),
  startsAtBase: false,
});
contract('lora of embedding and head', {
  make: () => lora({ rank: 2 }),
  at: ['embed_tokens', 'lm_head'],
  trained: ([out, width]) => 2 * (out + width),
});
contract('dora', {
  make: () => dora({ rank: 2, alpha: 6 }),
  trained: ([out, width]) => 2 * (out + width) + out,
  mixes: false,
  exactGradient: false,
  commutes: false,
});
// The base has no bias that a merged one could go to, and a row's bias is no matrix.
contract('lora with a bias', {
  make: () => lora({ rank: 2, loraBias: true }),
  at: ['q_proj', 'down_proj'],
  trained: ([out, width]) => 2 * (out + width) + out,
  merges: false,
  mixes: false,
});
contract('ia3', { make: () => ia3(), at: ['k_proj', 'v_proj'], trained: ([out]) => out, mixes: false, seeded: false });
contract('ia3 of inputs', { make: () => ia3(), at: 'down_proj', trained: ([, width]) => width, mixes: false, seeded: false });
contract('ia3, random start', {
  make: () => ia3({ init: false }),
  at: ['q_proj', 'up_proj'],
  trained: ([out]) => out,
  startsAtBase: false,
  mixes: false,
});
