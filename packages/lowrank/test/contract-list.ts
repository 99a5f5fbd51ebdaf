import type { Parameter } from '@niwaki/tensor';
import { scaleByLion } from '@niwaki/optim';
import type { AdapterCase } from '../../testing/src/adapter-contract.ts';
import { sizeOf } from '../../testing/src/contract-model.ts';
import type { TransformCase } from '../../testing/src/transform-contract.ts';
import type { WeightMethodCase } from '../../testing/src/weight-method-contract.ts';
import {
  bottleneck,
  compacter,
  dora,
  frugal,
  galore,
  ia3,
  int8Weights,
  loftq,
  lnTuning,
  lora,
  lqLora,
  pissa,
  prefixTuning,
  promptTuning,
  qGalore,
  qst,
} from '../src/index.ts';
import { integers } from './integers.ts';

// One line a method: the contract suites of this package and the composition matrix of all packages run what is listed.

type Adapters = Readonly<Record<string, AdapterCase>>;

const pair = ([out, width]: readonly [number, number]): number => 2 * (out + width);
const nothingDrawn = 'the start draws nothing';
const inSeries = 'each reads what the one before it left';

export const adapters: Adapters = {
  lora: { make: () => lora({ rank: 2, alpha: 6 }), trained: pair },
  'lora with dropout': {
    make: () => lora({ rank: 2, alpha: 6, dropout: 0.2 }),
    trained: pair,
    not: { accumulates: 'each micro-batch drops entries of its own' },
  },
  rslora: {
    make: () => lora({ rank: 4, rslora: true }),
    at: ['q_proj', 'down_proj'],
    trained: ([out, width]) => 4 * (out + width),
  },
  'lora, orthogonal start': { make: () => lora({ rank: 2, init: 'orthogonal' }), trained: pair },
  'lora, random start': {
    make: () => lora({ rank: 2, init: false }),
    trained: pair,
    not: { startsAtBase: 'both factors are drawn' },
  },
  'lora of embedding and head': { make: () => lora({ rank: 2 }), at: ['embed_tokens', 'lm_head'], trained: pair },
  dora: {
    make: () => dora({ rank: 2, alpha: 6 }),
    trained: ([out, width]) => 2 * (out + width) + out,
    not: { exactGradient: 'the norm is a constant of the backward pass', commutes: 'the outer one turns what the inner one gives' },
  },
  'lora with a bias': {
    make: () => lora({ rank: 2, loraBias: true }),
    at: ['q_proj', 'down_proj'],
    trained: ([out, width]) => 2 * (out + width) + out,
    // The base has no bias that a merged one could go to.
    mergeMisses: 'bias',
  },
  ia3: { make: () => ia3(), at: ['k_proj', 'v_proj'], trained: ([out]) => out, not: { seeded: nothingDrawn } },
  'ia3 of inputs': { make: () => ia3(), at: 'down_proj', trained: ([, width]) => width, not: { seeded: nothingDrawn } },
  'ia3, random start': {
    make: () => ia3({ init: false }),
    at: ['q_proj', 'up_proj'],
    trained: ([out]) => out,
    not: { startsAtBase: 'the factors are drawn' },
  },
};

const outputs = ['**.self_attn', '**.mlp'];

export const moduleAdapters: Adapters = {
  'prefix tuning': {
    make: () => prefixTuning({ virtualTokens: 3 }),
    at: '**.self_attn',
    // Two layers of keys and values on two heads of size 4; 8 in the wide model.
    trained: () => 3 * 2 * 8,
    not: { startsAtBase: 'every query sees the drawn keys' },
    leaves: 0.05,
  },
  'prompt tuning': {
    make: () => promptTuning({ virtualTokens: 3 }),
    at: 'embed_tokens',
    trained: ([, width]) => 3 * width,
    not: { startsAtBase: 'every token sees the drawn rows', commutes: 'the order of prompts is the order of their rows' },
    leaves: 0.1,
  },
  'ln tuning': {
    make: () => lnTuning(),
    at: ['input_layernorm', 'norm'],
    trained: ([, width]) => width,
    not: { seeded: nothingDrawn, joins: "the last set's values stand", commutes: "the last set's values stand" },
  },
  bottleneck: {
    make: () => bottleneck({ reduction: 4 }),
    at: outputs,
    trained: ([, width]) => (2 * width * width) / 4 + width / 4 + width,
    not: { commutes: inSeries },
  },
  compacter: {
    make: () => compacter({ reduction: 4, division: 2, trainNorms: false }),
    at: outputs,
    trained: ([, width]) => 2 * (width + width / 4) + width / 4 + width,
    shared: 8,
    not: { commutes: inSeries },
    leaves: 0.03,
  },
  qst: {
    make: () => qst({ reduction: 2, rank: 4 }),
    at: '**',
    trained: () => 0,
    // Two blocks of width 8, with 4 heads on 2 and an MLP of 16; what makes a hidden state narrow; what is before the head.
    shared: 2 * (2 * 64 + 64 + 3 * 8 * 16 + 3 * 8) + 2 * (16 * 4 + 4 * 8 + 2 * 8) + 8 + 8 * 16 + 2 * 16,
    not: { commutes: 'each mixes what the one before it left' },
    leaves: 0.01,
  },
};

export const residualAdapters: Adapters = {
  pissa: { make: () => lora({ rank: 2, alpha: 6, init: 'pissa' }), trained: pair, not: { seeded: nothingDrawn } },
  'pissa of rslora': {
    make: () => lora({ rank: 2, rslora: true, init: pissa() }),
    at: ['q_proj', 'down_proj'],
    trained: pair,
    not: { seeded: nothingDrawn },
  },
  olora: { make: () => lora({ rank: 2, alpha: 6, init: 'olora' }), trained: pair, not: { seeded: nothingDrawn } },
  'dora from pissa': {
    make: () => dora({ rank: 2, alpha: 6, init: 'pissa' }),
    at: ['q_proj', 'down_proj'],
    trained: (shape) => pair(shape) + shape[0],
    not: { seeded: nothingDrawn, exactGradient: 'the norm is a constant of the backward pass' },
  },
};

const quantized = 'the codes lose something';

export const quantizedAdapters: Adapters = {
  loftq: {
    make: () => lora({ rank: 2, alpha: 6, init: loftq({ quantizer: integers(4, 8), iterations: 2 }) }),
    trained: pair,
    not: { startsAtBase: quantized },
  },
  'lq-lora': {
    make: () => lora({ rank: 2, alpha: 6, init: lqLora({ quantizers: [integers(2, 8), integers(4, 8), integers(8, 16)], bits: 8 }) }),
    trained: pair,
    not: { startsAtBase: quantized },
  },
  'pissa of codes': {
    make: () => lora({ rank: 2, init: pissa({ quantizer: integers(4, 8) }) }),
    trained: pair,
    not: { startsAtBase: quantized, seeded: nothingDrawn },
  },
};

/** What trains of a matrix in its place of it. */
export const weightMethods: Readonly<Record<string, WeightMethodCase>> = {
  'int8 weights': { make: () => int8Weights({ groupSize: 32 }) },
};

/** Bytes of n numbers of state: f32, or from `minSize` on a byte each and a scale a block of 64. */
const coded = (size: number, minSize: number): number => (size < minSize ? 4 * size : size + 4 * Math.ceil(size / 64));

/** Basis of the smaller side, `tensors` moments of the larger; the rest whole. */
const projected =
  (rank: number, tensors: number, minSize = Infinity) =>
  ({ shape, role }: Parameter): number => {
    if (role !== 'matrix') return tensors * coded(sizeOf(shape), minSize);
    const [small, large] = [Math.min(...shape), Math.max(...shape)];
    return 4 * small * rank + tensors * coded(large * rank, minSize);
  };

/** A quarter of the columns: an index, and moments for it. */
const split =
  (density: number, tensors: number) =>
  ({ shape, role }: Parameter): number => {
    if (role !== 'matrix') return 4 * tensors * sizeOf(shape);
    const count = Math.floor(shape[1]! * density);
    return 4 * (count + tensors * shape[0]! * count);
  };

export const optimizers: Readonly<Record<string, TransformCase>> = {
  galore: { make: () => galore({ learningRate: 1, rank: 4, every: 5 }), stateBytes: projected(4, 2), rate: 0.04, reaches: 0.1 },
  'galore, 8 bits': {
    make: () => galore({ learningRate: 1, rank: 4, every: 5, state: { minSize: 64, blockSize: 64 } }),
    stateBytes: projected(4, 2, 64),
    rate: 0.04,
    reaches: 0.1,
  },
  'galore of lion': {
    make: () => galore({ learningRate: 1, rank: 4, every: 5, scale: 1, direction: scaleByLion() }),
    stateBytes: projected(4, 1),
    rate: 0.004,
    // Signs are taken in the subspace: what turns back to entries is no longer of one size.
    reaches: 0.2,
  },
  'q-galore': {
    make: () => qGalore({ learningRate: 1, rank: 4, every: 5, window: 2, basisGroupSize: 32, state: { minSize: 64, blockSize: 64 } }),
    stateBytes: ({ shape, role }) => {
      if (role !== 'matrix') return 2 * coded(sizeOf(shape), 64);
      const [small, large] = [Math.min(...shape), Math.max(...shape)];
      // The basis in 4 bits; its first vector and two likenesses; the moments.
      return (4 * small) / 2 + 8 * Math.ceil((4 * small) / 32) + 4 * (small + 2) + 2 * coded(4 * large, 64);
    },
    rate: 0.04,
    reaches: 0.1,
  },
  frugal: { make: () => frugal({ learningRate: 1, every: 5 }), stateBytes: split(0.25, 2), rate: 0.003 },
  'frugal without state': { make: () => frugal({ learningRate: 1, density: 0 }), stateBytes: split(0, 2), rate: 0.003 },
  'frugal of whole matrices by turns': {
    make: () => frugal({ learningRate: 1, every: 4, split: 'blocks', order: 'descending', density: 0.5 }),
    // 7 of 14 matrices at a time, from the last on: in updates 1 to 4 those of the second block, and in update 17 again.
    stateBytes: ({ path, shape, role }) => (role !== 'matrix' || path.includes('layers.1') ? 8 * sizeOf(shape) : 0),
    rate: 0.003,
  },
  'frugal of singular vectors': {
    make: () => frugal({ learningRate: 1, every: 5, split: 'singular' }),
    stateBytes: ({ shape, role }) => {
      if (role !== 'matrix') return 8 * sizeOf(shape);
      const [small, large] = [Math.min(...shape), Math.max(...shape)];
      return 4 * (small + 2 * large) * Math.round(small / 4);
    },
    rate: 0.003,
    reaches: 0.1,
  },
};
