import { adapterContract } from '../../testing/src/adapter-contract.ts';
import { s2ft, spiel, type Slices } from '../src/index.ts';
import { verbs } from './verbs.ts';

const contract = adapterContract(verbs);

/** The same units of one map in both layers. */
const named = (units: Readonly<Record<string, readonly number[]>>): Slices =>
  Object.fromEntries([0, 1].flatMap((layer) => Object.entries(units).map(([name, list]) => [`model.layers.${layer}.${name}`, list])));

// Of [16, 16] two heads of 4 columns, of [16, 32] three channels.
contract('s2ft of columns', {
  make: () => s2ft({ slices: named({ 'self_attn.o_proj': [3, 1], 'mlp.down_proj': [30, 2, 17] }) }),
  at: ['o_proj', 'down_proj'],
  trained: ([out, width]) => out * (width === 16 ? 8 : 3),
  seeded: false,
});
// Of [8, 16] one kv head of 4 rows, of [32, 16] three channels in a row.
contract('s2ft of rows', {
  make: () => s2ft({ slices: named({ 'self_attn.v_proj': [1], 'mlp.up_proj': [4, 5, 6] }) }),
  at: ['v_proj', 'up_proj'],
  trained: ([out, width]) => width * (out === 8 ? 4 : 3),
  seeded: false,
});

// Of 512 entries of a down_proj each trains, and so does each of 256 of an o_proj.
contract('spiel of every entry', {
  make: () => spiel({ numTunable: 2 * (512 + 256) }),
  at: ['o_proj', 'down_proj'],
  trained: ([out, width]) => out * width,
  seeded: false,
});
// Another seed has other entries: of a planted change it can learn what lies at its own.
contract('spiel', {
  make: () => spiel({ numTunable: 512 + 256 }),
  at: ['o_proj', 'down_proj'],
  trained: ([out, width]) => (out * width) / 2,
  leaves: 0.7,
});
