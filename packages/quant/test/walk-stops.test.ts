import { describe, expect, it } from 'vitest';
import type { Method } from '@niwaki/engine';
import { expectNoTraceOfStops, fourBlocks } from '../../testing/src/walk-stops.ts';
import { activations, awq, cbq, gptq } from '../src/index.ts';

const fitted = { bits: 2, groupSize: 8, epochs: 1 } as const;
const biased = { ...fourBlocks, attention_bias: true, mlp_bias: true };
const walks: Readonly<Record<string, { make(): Method; windows: number; config?: Record<string, unknown> }>> = {
  gptq: { make: () => gptq({ bits: 3, groupSize: 8 }), windows: 4 },
  'gptq in an order of its own': { make: () => gptq({ bits: 4, groupSize: 8, actOrder: true }), windows: 4 },
  awq: { make: () => awq({ groupSize: 8 }), windows: 4 },
  'awq, folded into norms, values and biases': { make: () => awq({ groupSize: 8, fold: true }), windows: 4, config: biased },
  'cbq, windows that share a block': { make: () => cbq(fitted), windows: 3 },
  'cbq, windows that share two of three': { make: () => cbq({ ...fitted, window: 3, overlap: 2 }), windows: 2 },
  'cbq, windows that share none': { make: () => cbq({ ...fitted, window: 2, overlap: 0 }), windows: 2 },
  'cbq of a rank, with outliers and activations': {
    make: () => cbq({ ...fitted, rank: 3, outliers: 'both', activations: { bits: 8 } }),
    windows: 3,
  },
  'cbq of inputs whose steps train, and of operands': {
    make: () => cbq({ ...fitted, activations: { bits: 4, per: 'tensor', attention: ['keys'] } }),
    windows: 3,
  },
  'activations, per tensor': { make: () => activations({ bits: 4, per: 'tensor' }), windows: 4 },
};

describe('a walk that is stopped after each window and goes on', () => {
  it.each(Object.entries(walks))('ends bit for bit where one without a stop ends: %s', async (_, { make, windows, config }) => {
    expect(await expectNoTraceOfStops(make, config)).toBe(windows);
  });
});
