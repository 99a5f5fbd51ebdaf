import { addNoiseOp, createDraw, noiseOp, type Distribution } from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { describe, expect, test } from 'vitest';
import { expectParity, floats, onGpu, reference } from './parity.ts';

const missing = await gpuMissing();
const { seed, step, id, sample } = createDraw(0x9e3779b97f4a7c15n, 7).at('model.layers.0.self_attn.q_proj.weight', 3);
const address = { seedLow: Number(seed & 0xffffffffn), seedHigh: Number(seed >> 32n), step, id, sample };

/** Exact where the values are integers or integers over a power of two. */
const exact: readonly Distribution[] = ['rademacher', 'binomial64', 'irwinhall12', 'uniform', 'mask'];
const lengths = [1, 3, 5, 64, 65, 1000, 10_001];

describe.skipIf(missing)('noise on WebGPU', () => {
  test.each(exact.flatMap((d) => lengths.map((n) => [d, n] as const)))(
    '%s of %i entries has the bits of the host',
    async (distribution, length) => {
      const attrs = { ...address, distribution, length, keep: 0.3 };
      const [expected] = await reference(noiseOp as never, {}, attrs);
      const [given] = await onGpu(noiseOp as never, {}, attrs);
      expect(given!.values).toEqual(expected!.values);
    },
  );

  test.each(lengths)('gaussian of %i entries is within the rounding that WGSL leaves open', async (length) => {
    const attrs = { ...address, distribution: 'gaussian', length, keep: 1 };
    const [expected] = await reference(noiseOp as never, {}, attrs);
    const [given] = await onGpu(noiseOp as never, {}, attrs);
    const worst = Array.from(given!.values).reduce((most, v, i) => Math.max(most, Math.abs(v - expected!.values[i]!)), 0);
    expect(worst).toBeLessThanOrEqual(2e-5);
  });

  test.each(lengths)('%i entries with noise on top are within the same', async (length) => {
    const x = floats([length]);
    const factor = floats([], 5);
    for (const distribution of [...exact, 'gaussian'] as const) {
      const attrs = { ...address, distribution, length, keep: 0.3 };
      await expectParity(addNoiseOp as never, { x, factor }, attrs, 2e-5);
    }
  });

  test('keeps everything at probability 1 and nothing at 0', async () => {
    for (const keep of [0, 1]) {
      const [mask] = await onGpu(noiseOp as never, {}, { ...address, distribution: 'mask', length: 257, keep });
      expect(new Set(mask!.values)).toEqual(new Set([keep]));
    }
  });
});
