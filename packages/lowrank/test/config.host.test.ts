import { describe, expect, it } from 'vitest';
import { scaleByLion, type Group, type StateStorage, type Transform } from '@niwaki/optim';
import { descriptionOf } from '@niwaki/tensor';
import { configContract, type FieldCase } from '../../testing/src/config-contract.ts';
import {
  bottleneck,
  compacter,
  frugal,
  galore,
  ia3,
  lnTuning,
  int8Weights,
  loftq,
  lora,
  loraPlus,
  lqLora,
  olora,
  pissa,
  prefixTuning,
  promptTuning,
  qGalore,
  qst,
  type BottleneckOptions,
  type CompacterOptions,
  type FrugalOptions,
  type GaloreOptions,
  type Ia3Options,
  type LnTuningOptions,
  type Int8WeightsOptions,
  type LoftqOptions,
  type LoraOptions,
  type LoraPlusOptions,
  type LqLoraOptions,
  type OloraOptions,
  type PissaOptions,
  type PrefixTuningOptions,
  type PromptTuningOptions,
  type QGaloreOptions,
  type QstOptions,
} from '../src/index.ts';
import { integers } from './integers.ts';

const rate: FieldCase<number> = { takes: 0.01, not: [-1, Number.NaN, Infinity] };
const part: FieldCase<number> = { takes: 0.5, not: [-0.1, 1, Number.NaN] };
const count: FieldCase<number> = { takes: 2, not: [0, 1.5, -1] };
const flag: FieldCase<boolean> = { takes: true, not: ['yes'] };
const ofTargets = 'a selection, which is checked against the model';
const targets = {
  excludeModules: { takes: ['k_proj'], not: ofTargets },
  layersToTransform: { takes: [0], not: ofTargets },
  layersPattern: { takes: 'layers', not: ofTargets },
  modulesToSave: { takes: ['lm_head'], not: ofTargets },
} as const;

configContract<LoraOptions>('lora', lora, {
  ...targets,
  rank: count,
  alpha: { takes: 4, not: [0, Number.NaN, Infinity] },
  dropout: part,
  init: { takes: 'gaussian', not: ['eva', 'pissa_niter_0'] },
  rslora: flag,
  dora: flag,
  loraBias: flag,
  rankPattern: { takes: { q_proj: 4 }, not: 'its numbers are ranks' },
  alphaPattern: { takes: { q_proj: 4 }, not: 'its numbers are alphas' },
  bias: { takes: 'all', not: ['some'] },
  trainableTokens: { takes: [1], not: ofTargets },
});
configContract<Ia3Options>('ia3', ia3, {
  excludeModules: targets.excludeModules,
  modulesToSave: targets.modulesToSave,
  feedforwardModules: { takes: ['down_proj'], not: ofTargets },
  init: flag,
});
configContract<LnTuningOptions>('lnTuning', lnTuning, { excludeModules: targets.excludeModules, modulesToSave: targets.modulesToSave });
configContract<PromptTuningOptions>('promptTuning', promptTuning, {
  virtualTokens: count,
  init: { takes: 'vocabulary', not: ['text', []] },
});
configContract<PrefixTuningOptions>('prefixTuning', prefixTuning, { virtualTokens: count, init: { takes: 'zero', not: ['one'] } });
configContract<BottleneckOptions>('bottleneck', bottleneck, { ...targets, reduction: count });
configContract<CompacterOptions>('compacter', compacter, {
  excludeModules: targets.excludeModules,
  layersToTransform: targets.layersToTransform,
  layersPattern: targets.layersPattern,
  division: count,
  reduction: count,
  rank: count,
  ruleRange: { takes: 0.1, not: [0, Number.NaN] },
  trainNorms: flag,
});
configContract<QstOptions>('qst', qst, {
  reduction: count,
  rank: count,
  downsample: { takes: 'lora', not: ['mean'] },
  heads: count,
  codeCompat: flag,
});
configContract<LoraPlusOptions>('loraPlus', loraPlus, { ratio: { takes: 4, not: [0.5, Infinity] }, embeddingRatio: rate });

const aQuantizer: FieldCase<ReturnType<typeof integers>> = {
  takes: integers(4, 8),
  not: 'a method; one that looks at more than a matrix is refused by its traits',
};
configContract<PissaOptions>('pissa', pissa, { iterations: count, quantizer: aQuantizer });
configContract<OloraOptions>('olora', olora, { quantizer: aQuantizer });
configContract<LoftqOptions>('loftq', loftq, { iterations: count, quantizer: aQuantizer });
configContract<LqLoraOptions>('lqLora', lqLora, {
  quantizers: { takes: [integers(4, 8)], not: 'methods, see above' },
  bits: { takes: 4, not: [0, Infinity] },
  iterations: count,
  importance: { takes: new Map(), not: 'its shapes are checked against the model' },
  onAllocation: { takes: () => {}, not: 'a callback' },
});

const optimizer = {
  learningRate: rate,
  weightDecay: rate,
  groups: { takes: [{ roles: ['norm'], weightDecay: 0 }] as readonly Group[], not: 'its numbers are those of the optimizer' },
  beta1: part,
  beta2: part,
  eps: { takes: 1e-8, not: [-1, Number.NaN] },
  correctLast: flag,
  direction: { not: 'a transform, which the compiler knows' },
  at: { takes: '**.mlp.*', not: 'a pattern of paths' },
} as const;
const state: FieldCase<StateStorage> = { takes: '8bit', not: ['4bit'] };

configContract<GaloreOptions>('galore', galore, {
  ...optimizer,
  state,
  rank: count,
  every: count,
  scale: rate,
  projection: { takes: 'full', not: ['both'] },
});
configContract<FrugalOptions>('frugal', frugal, {
  ...optimizer,
  direction: { takes: scaleByLion(), not: 'a transform, which the compiler knows' },
  beta1: { not: 'with another direction there is no Adam' },
  beta2: { not: 'see beta1' },
  eps: { not: 'see beta1' },
  correctLast: { not: 'see beta1' },
  state,
  density: { takes: 0.5, not: [-0.1, 1.1] },
  every: count,
  split: { takes: 'rows', not: ['diagonal'] },
  order: { not: "it is for split 'blocks' alone, and a test of its own" },
  rest: { takes: 'sgd', not: ['adam'] },
  restScale: rate,
  scale: rate,
  reset: flag,
});
configContract<QGaloreOptions>('qGalore', qGalore, {
  ...optimizer,
  state,
  rank: count,
  every: count,
  scale: rate,
  basisBits: { takes: 4, not: [1, 5] },
  basisGroupSize: { takes: 64, not: [8, 32.5] },
  threshold: { takes: 0.4, not: [-1, Number.NaN] },
  growth: count,
  window: count,
  longest: count,
});
configContract<Int8WeightsOptions>('int8Weights', int8Weights, {
  groupSize: { takes: 64, not: [7, 8.5] },
  rounding: { takes: 'nearest', not: ['up'] },
});

describe('what is not said', () => {
  it.each<[string, { readonly options?: unknown }, object]>([
    [
      'lora',
      lora(),
      {
        rank: 8,
        alpha: 8,
        dropout: 0,
        init: true,
        rslora: false,
        dora: false,
        bias: 'none',
        loraBias: false,
        rankPattern: {},
        alphaPattern: {},
      },
    ],
    ['ia3', ia3(), { feedforwardModules: ['down_proj'], init: true }],
    ['promptTuning', promptTuning(), { virtualTokens: 20, init: 'normal' }],
    ['prefixTuning', prefixTuning(), { virtualTokens: 20, init: 'normal' }],
    ['compacter', compacter(), { division: 4, reduction: 32, rank: 1, ruleRange: 1e-4, trainNorms: true, modulesToSave: ['norm'] }],
    ['loftq', loftq({ quantizer: integers(4, 8) }), { quantizer: integers(4, 8).toJSON(), iterations: 1 }],
    ['int8Weights', int8Weights(), { groupSize: 256, rounding: 'stochastic' }],
  ])('is what the method says by default: %s', (_, { options }, expected) => expect(options).toEqual(expected));

  const decay = (order: string): object => ({ kind: 'decay', weightDecay: 0, rateScale: 1, order });
  const rate = { kind: 'rate', rateScale: 1 };
  const adam = { kind: 'adam', beta1: 0.9, beta2: 0.999 };
  const coded = { ...adam, eps: 1e-8, correctLast: false, state: { blockSize: 256, minSize: 4096, strictBnb: false } };
  const projection = { rank: 4, every: 200, scale: 0.25, projection: 'std' };
  const projected = { kind: 'galore', ...projection };
  const lazy = { every: 200, threshold: 0.4, growth: 2, window: 5, longest: 'Infinity' };
  it.each<[string, Transform, readonly object[]]>([
    ['galore', galore({ learningRate: 1, rank: 4 }), [{ ...projected, inner: { ...adam, eps: 1e-6, correctLast: true } }, decay('after')]],
    ['galore in 8 bits', galore({ learningRate: 1, rank: 4, state: '8bit' }), [{ ...projected, inner: coded }, decay('after')]],
    [
      'qGalore',
      qGalore({ learningRate: 1, rank: 4 }),
      [{ kind: 'q-galore', ...projection, inner: coded, basis: { bits: 4, groupSize: 256 }, pace: lazy }, decay('after')],
    ],
    [
      'frugal',
      frugal({ learningRate: 1 }),
      [
        {
          kind: 'frugal',
          inner: { ...adam, eps: 1e-8, correctLast: false },
          density: 0.25,
          every: 200,
          split: 'columns',
          rest: 'sign',
          restScale: 1,
          scale: 1,
          reset: true,
        },
        decay('before'),
      ],
    ],
  ])('is what the paper says: %s', (_, transform, parts) =>
    expect(JSON.parse(JSON.stringify(descriptionOf(transform)))).toMatchObject({ parts: [...parts, rate] }),
  );

  it("is a rate of B sixteen times A's, and one of embeddings of 1e-6 beside 2e-4", () =>
    expect(loraPlus()).toEqual(loraPlus({ ratio: 16, embeddingRatio: 0.005 })));
});
