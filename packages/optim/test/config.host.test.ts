import { configContract, rangeContract, type FieldCase } from '../../testing/src/config-contract.ts';
import {
  adamw,
  agedAdamw,
  clipByEntry,
  clipByGlobalNorm,
  constant,
  cosine,
  linear,
  lion,
  sgd,
  sm3,
  wsd,
  type AdamwOptions,
  type AgedAdamwOptions,
  type BlockwiseStateOptions,
  type DecayOptions,
  type Group,
  type LionOptions,
  type SgdOptions,
  type Sm3Options,
  type StateStorage,
  type WarmupOptions,
  type WsdOptions,
} from '../src/index.ts';

const rate: FieldCase<number> = { takes: 0.01, not: [-1, Number.NaN, Infinity] };
const part: FieldCase<number> = { takes: 0.5, not: [-0.1, 1, Number.NaN] };
const shared = {
  learningRate: rate,
  weightDecay: rate,
  groups: { takes: [{ roles: ['norm'], weightDecay: 0 }] as readonly Group[], not: 'its numbers are those of the optimizer' },
  state: { takes: '8bit' as StateStorage, not: ['4bit'] },
};
const eps: FieldCase<number> = { takes: 1e-8, not: [-1, Number.NaN] };

configContract<AdamwOptions>('adamw', adamw, {
  ...shared,
  beta1: part,
  beta2: part,
  eps,
  correctLast: { takes: true, not: ['yes'] },
  decayOrder: { takes: 'after', not: ['never'] },
});
configContract<AgedAdamwOptions>('agedAdamw', agedAdamw, { ...shared, beta1: part, beta2: part, eps });
configContract<LionOptions>('lion', lion, { ...shared, beta1: part, beta2: part });
configContract<SgdOptions>('sgd', sgd, { ...shared, momentum: part, nesterov: { takes: true, not: ['yes'] } });
configContract<Sm3Options>('sm3', sm3, { ...shared, momentum: part, eps: { takes: 1e-8, not: [0, Number.NaN] } });
configContract<WsdOptions>('wsd', wsd, {
  learningRate: rate,
  warmup: { takes: 0.1, not: [-1, Number.NaN] },
  floor: { takes: 0.1, not: [-0.1, 1.1] },
  decay: { takes: 0.2, not: [-1] },
  shape: { takes: 'sqrt', not: ['cosine'] },
});

configContract<BlockwiseStateOptions>('adamw, state', (state) => adamw({ learningRate: 1, state }), {
  blockSize: { takes: 64, not: [0, 10, -4, Number.NaN] },
  minSize: { takes: 0, not: [-1, Number.NaN] },
  except: { takes: { roles: ['embedding'] }, not: 'a selection of parameters' },
  strictBnb: { takes: true, not: ['yes'] },
});
configContract<Group>('adamw, group', (group) => adamw({ learningRate: 1, groups: [group] }), {
  roles: { takes: ['norm'], not: 'a selection of parameters' },
  at: { takes: '**.norm', not: 'a selection of parameters' },
  weightDecay: rate,
  rateScale: rate,
});
const rising = { learningRate: rate, warmup: { takes: 0.1, not: [-1, Number.NaN] } } as const;
const falling = { ...rising, floor: { takes: 0.1, not: [-0.1, 1.1] } } as const;
configContract<WarmupOptions>('constant', constant, rising);
configContract<DecayOptions>('linear', linear, falling);
configContract<DecayOptions>('cosine', cosine, falling);
rangeContract<{ maxNorm: number }>('clipByGlobalNorm', ({ maxNorm }) => clipByGlobalNorm(maxNorm), {
  maxNorm: { takes: 1, not: [0, -1, Number.NaN] },
});
rangeContract<{ limit: number }>('clipByEntry', ({ limit }) => clipByEntry(limit), { limit: { takes: 1, not: [0, -1, Number.NaN] } });
