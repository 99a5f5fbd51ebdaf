import { adapterContract } from '../../testing/src/adapter-contract.ts';
import { bottleneck, compacter, prefixTuning, promptTuning } from '../src/index.ts';
import { verbs } from './verbs.ts';

const contract = adapterContract(verbs);
const outputs = ['**.self_attn', '**.mlp'];

contract('prefix tuning', {
  make: () => prefixTuning({ virtualTokens: 3 }),
  at: '**.self_attn',
  // Two layers of keys and values on two heads of size 4; 8 in the wide model.
  trained: () => 3 * 2 * 8,
  startsAtBase: false,
  merges: false,
  mixes: false,
  leaves: 0.05,
});
contract('prompt tuning', {
  make: () => promptTuning({ virtualTokens: 3 }),
  at: 'embed_tokens',
  trained: ([, width]) => 3 * width,
  startsAtBase: false,
  merges: false,
  mixes: false,
  // The order of prompts is the order of their rows.
  commutes: false,
  leaves: 0.1,
});
contract('bottleneck', {
  make: () => bottleneck({ reduction: 4 }),
  at: outputs,
  trained: ([, width]) => (2 * width * width) / 4 + width / 4 + width,
  merges: false,
  mixes: false,
  // Each reads what the one before it left.
  commutes: false,
});
contract('compacter', {
  make: () => compacter({ reduction: 4, division: 2, trainNorms: false }),
  at: outputs,
  trained: ([, width]) => 2 * (width + width / 4) + width / 4 + width,
  shared: 8,
  merges: false,
  mixes: false,
  commutes: false,
  leaves: 0.03,
});
