import { describe, expect, it } from 'vitest';
import { descriptionOf } from '@niwaki/tensor';
import {
  adamw,
  agedAdamw,
  chain,
  clipByEntry,
  clipByGlobalNorm,
  frugal,
  galore,
  lion,
  loraPlus,
  qGalore,
  scaleByLion,
  sgd,
  sm3,
  type Transform,
} from '../src/index.ts';

/** Of each optimizer, every option with another value than its default. */
const others: Readonly<Record<string, readonly [make: (options: never) => Transform, options: object, base?: object]>> = {
  adamw: [
    adamw,
    {
      beta1: 0.8,
      beta2: 0.99,
      eps: 1e-6,
      correctLast: true,
      weightDecay: 0.1,
      groups: loraPlus(),
      state: '8bit',
      decayOrder: 'after',
    },
  ],
  agedAdamw: [agedAdamw, { beta1: 0.8, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, groups: loraPlus(), state: '8bit' }],
  lion: [lion, { beta1: 0.8, beta2: 0.98, weightDecay: 0.1, groups: loraPlus(), state: { blockSize: 64 } }],
  sgd: [sgd, { momentum: 0.8, nesterov: true, weightDecay: 0.1, groups: loraPlus(), state: '8bit' }, { momentum: 0.9 }],
  sm3: [sm3, { momentum: 0.9, eps: 1e-6, weightDecay: 0.1, groups: loraPlus(), state: '8bit' }],
  galore: [
    galore,
    {
      rank: 8,
      every: 100,
      scale: 1,
      projection: 'reverse',
      at: 'q_proj',
      beta1: 0.8,
      eps: 1e-7,
      weightDecay: 0.1,
      groups: loraPlus(),
      state: '8bit',
      direction: scaleByLion(),
    },
    { rank: 4 },
  ],
  qGalore: [
    qGalore,
    {
      rank: 8,
      every: 100,
      scale: 1,
      at: 'q_proj',
      basisBits: 8,
      basisGroupSize: 128,
      threshold: 0.5,
      growth: 3,
      window: 4,
      longest: 1000,
      beta2: 0.99,
      weightDecay: 0.1,
      state: '32bit',
    },
    { rank: 4 },
  ],
  frugal: [
    frugal,
    {
      density: 0.5,
      every: 100,
      split: 'blocks',
      rest: 'sgd',
      restScale: 0.1,
      scale: 0.5,
      reset: false,
      at: 'q_proj',
      beta1: 0.8,
      weightDecay: 0.1,
      groups: loraPlus(),
      state: '8bit',
      direction: scaleByLion(),
    },
  ],
};

const options = Object.entries(others).flatMap(([name, [make, given, base]]) =>
  Object.entries(given).map(([option, value]) => ({ name, option, value: value as unknown, make, base })),
);

describe('what an optimizer says of itself', () => {
  it.each(options)('$name: another $option is told', ({ option, value, make, base }) => {
    const told = (more: object): unknown => descriptionOf(make({ learningRate: 1, ...base, ...more } as never));
    expect(told({})).toEqual(told({}));
    expect(told({ [option]: value })).not.toEqual(told({}));
    expect(told({ [option]: value })).toEqual(told({ [option]: value }));
  });

  it('is plain JSON, part by part, with every default filled in', () => {
    const transform = chain(clipByGlobalNorm(1), clipByEntry(2), adamw({ learningRate: 1e-3 }));
    expect(descriptionOf(transform)).toEqual({
      kind: 'clip → clip-entries → adamw',
      parts: [
        { kind: 'clip', maxNorm: 1 },
        { kind: 'clip-entries', limit: 2 },
        { kind: 'adam', beta1: 0.9, beta2: 0.999, eps: 1e-8, correctLast: false },
        { kind: 'decay', weightDecay: 0.01, rateScale: 1, order: 'before' },
        { kind: 'rate', rateScale: 1 },
      ],
    });
  });

  it('leaves the rate to the schedule, and names functions that say nothing of themselves', () => {
    expect(descriptionOf(sgd({ learningRate: 1 }))).toEqual(descriptionOf(sgd({ learningRate: 2 })));
    const own = { name: 'mine', options: { by: () => 1, most: Infinity, seed: 3n } };
    expect(descriptionOf(own)).toEqual({ kind: 'mine', by: 'function by', most: 'Infinity', seed: '3' });
  });
});
