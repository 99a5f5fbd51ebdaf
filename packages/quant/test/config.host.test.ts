import { configContract, type FieldCase } from '../../testing/src/config-contract.ts';
import {
  activations,
  awq,
  cbq,
  fp4,
  gptq,
  nf4,
  normalFloat,
  rtn,
  type ActivationOptions,
  type AwqOptions,
  type CbqActivations,
  type CbqOptions,
  type Codebook4MethodOptions,
  type GptqOptions,
  type IntegerOptions,
  type NormalFloatMethodOptions,
} from '../src/index.ts';

const flag: FieldCase<boolean> = { takes: true, not: ['yes'] };
const bits: FieldCase<2 | 3 | 4 | 8> = { takes: 3, not: [0, 5, 2.5] };
const groupSize: FieldCase<number | 'row'> = { takes: 32, not: [0, 1.5, 'column'] };
const integers = { bits, groupSize, symmetric: { takes: 'gptq', not: ['awq'] }, mse: flag } as const;
const book = { blockSize: { takes: 32, not: [0, 48, 8192] }, doubleQuant: flag, dtype: { takes: 'float16', not: ['float8'] } } as const;

configContract<Codebook4MethodOptions>('nf4', nf4, book);
configContract<Codebook4MethodOptions>('fp4', fp4, book);
configContract<NormalFloatMethodOptions>('normalFloat', normalFloat, {
  bits: { takes: 3, not: [0, 5, 2.5] },
  scaleBits: { takes: 2, not: [1, 6] },
  scaleType: { takes: 'bfloat16', not: ['float8'] },
  blockSize: { takes: 16, not: [0, 1.5] },
  groupSize: { takes: 64, not: [0, 1.5] },
});
configContract<IntegerOptions>('rtn', rtn, integers);
configContract<GptqOptions>('gptq', gptq, {
  ...integers,
  damping: { takes: 0.1, not: [0, 1] },
  actOrder: flag,
  staticGroups: flag,
  sequential: flag,
});
configContract<CbqOptions>('cbq', cbq, {
  ...integers,
  window: { takes: 2, not: [0, 1.5] },
  overlap: { takes: 1, not: [-1, 2] },
  rank: { takes: 2, not: [0, 'half'] },
  start: { takes: 'float', not: ['nearest'] },
  epochs: { takes: 1, not: [0, 1.5] },
  learningRate: { takes: 0.1, not: [0, Infinity] },
  scaleRate: { takes: 0, not: [-1, Number.NaN] },
  decide: { takes: 1, not: [-1, Number.NaN] },
  divergence: { takes: 0, not: [-1, Number.NaN] },
  outliers: { takes: 'both', not: ['all'] },
  activations: { takes: { bits: 4 }, not: [8, 'int8'] },
  seed: { takes: 1, not: [0.5] },
});
const rounded = { bits: { takes: 4, not: [1, 9, 4.5] }, symmetric: flag, per: { takes: 'tensor', not: ['channel', 'row'] } } as const;
configContract<ActivationOptions>('activations', activations, {
  ...rounded,
  per: { takes: 'token', not: ['channel', 'row'] },
  outlierThreshold: { takes: 6, not: [-1, Infinity, Number.NaN] },
});
configContract<CbqActivations>('cbq, activations', (options) => cbq({ activations: options }), {
  ...rounded,
  learningRate: { takes: 0, not: [-1, Infinity] },
  attention: { takes: ['keys', 'values'], not: ['keys', ['scores']] },
});
configContract<AwqOptions>('awq', awq, { bits, groupSize, clip: flag, fold: flag });
