import type { Participant } from '@niwaki/engine';
import type { AdapterCase } from '../../testing/src/adapter-contract.ts';
import type { WeightMethodCase } from '../../testing/src/weight-method-contract.ts';
import { dsnot, lisa, magnitude, s2ft, sparsegpt, spiel, wanda, type Slices } from '../src/index.ts';

// One line a method: the contract suites of this package and the composition matrix of all packages run what is listed.

export const pruners: Readonly<Record<string, WeightMethodCase>> = {
  magnitude: { make: () => magnitude({ sparsity: 0.5 }) },
  'magnitude, 2:4': { make: () => magnitude({ n: 2, m: 4, store: 'n-of-m' }) },
  'magnitude, csr': { make: () => magnitude({ sparsity: 0.75, store: 'csr' }) },
  wanda: { make: () => wanda({ sparsity: 0.5 }) },
  sparsegpt: { make: () => sparsegpt({ sparsity: 0.5 }) },
  dsnot: { make: () => dsnot({ initial: wanda({ sparsity: 0.5 }), refine: 'all' }) },
};

export const participants: Readonly<Record<string, { make(): Participant }>> = {
  lisa: { make: () => lisa({ active: 1, every: 2 }) },
};

/** The same units of one map in both layers. */
const named = (units: Readonly<Record<string, readonly number[]>>): Slices =>
  Object.fromEntries([0, 1].flatMap((layer) => Object.entries(units).map(([name, list]) => [`model.layers.${layer}.${name}`, list])));

const unitsGiven = 'the units are given, and nothing else is drawn';

export const adapters: Readonly<Record<string, AdapterCase>> = {
  // Of [16, 16] two heads of 4 columns, of [16, 32] three channels.
  's2ft of columns': {
    make: () => s2ft({ slices: named({ 'self_attn.o_proj': [3, 1], 'mlp.down_proj': [30, 2, 17] }) }),
    at: ['o_proj', 'down_proj'],
    trained: ([out, width]) => out * (width === 16 ? 8 : 3),
    not: { seeded: unitsGiven },
  },
  // Of [8, 16] one kv head of 4 rows, of [32, 16] three channels in a row.
  's2ft of rows': {
    make: () => s2ft({ slices: named({ 'self_attn.v_proj': [1], 'mlp.up_proj': [4, 5, 6] }) }),
    at: ['v_proj', 'up_proj'],
    trained: ([out, width]) => width * (out === 8 ? 4 : 3),
    not: { seeded: unitsGiven },
  },
  's2ft of columns, in place': {
    make: () => s2ft({ slices: named({ 'self_attn.o_proj': [3, 1], 'mlp.down_proj': [30, 2, 17] }), inPlace: true }),
    at: ['o_proj', 'down_proj'],
    trained: ([out, width]) => out * (width === 16 ? 8 : 3),
    not: { seeded: unitsGiven },
  },
  's2ft of rows, in place': {
    make: () => s2ft({ slices: named({ 'self_attn.v_proj': [1], 'mlp.up_proj': [4, 5, 6] }), inPlace: true }),
    at: ['v_proj', 'up_proj'],
    trained: ([out, width]) => width * (out === 8 ? 4 : 3),
    not: { seeded: unitsGiven },
  },
  // Of 512 entries of a down_proj each trains, and so does each of 256 of an o_proj.
  'spiel of every entry': {
    make: () => spiel({ numTunable: 2 * (512 + 256) }),
    at: ['o_proj', 'down_proj'],
    trained: ([out, width]) => out * width,
    not: { seeded: 'every entry is taken' },
  },
  // Another seed has other entries: of a planted change it can learn what lies at its own.
  spiel: {
    make: () => spiel({ numTunable: 512 + 256 }),
    at: ['o_proj', 'down_proj'],
    trained: ([out, width]) => (out * width) / 2,
    leaves: 0.7,
  },
};
