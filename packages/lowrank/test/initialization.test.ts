import { describe, expect, it } from 'vitest';
import { createDraw, denseParameter, matMul, memory, tensor2d, tidy, type Tensor2D } from '@niwaki/tensor';
import { denseWeight, disposeWeight } from '@niwaki/weights';
import { initialEmbedding, initializerOf, type InitContext } from '../src/initialization.ts';

interface Started {
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly product: Float32Array;
}

/** A pair on a base of zeros, of which nothing is left. */
async function started(
  init: boolean | string,
  { out, in: width, rank }: Pick<InitContext, 'out' | 'in' | 'rank'>,
  { embedding = false } = {},
): Promise<Started> {
  const before = memory().numTensors;
  const weight = denseWeight(denseParameter('m.weight', tensor2d(new Float32Array(out * width), [out, width]), { role: 'matrix' }));
  const site = { path: 'm', point: 'linear', weight, inputId: 'x' } as const;
  const context = { out, in: width, rank, scale: 1, draw: createDraw(5, 0), aPath: 'm.a', bPath: 'm.b', weight, site };
  const pair = embedding ? initialEmbedding(init, context) : await initializerOf(init).linear(context);
  expect('base' in pair).toBe(false);
  const [a, b] = [await pair.a.data(), await pair.b.data()] as [Float32Array, Float32Array];
  const product = tidy(() => matMul(pair.b, pair.a) as Tensor2D);
  const found = { a, b, product: (await product.data()) as Float32Array };
  for (const tensor of [pair.a, pair.b, product]) tensor.dispose();
  disposeWeight(weight);
  expect(memory().numTensors).toBe(before);
  return found;
}

const most = (values: Float32Array): number => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
const deviation = (values: Float32Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

describe('how a pair starts', () => {
  it("with A of Kaiming's uniform: 4096 inputs lie in ±0.015625", async () => {
    const { a, b } = await started(true, { out: 8, in: 4096, rank: 8 });
    expect(most(a)).toBeLessThanOrEqual(0.015625);
    expect(most(a)).toBeGreaterThan(0.0155);
    expect(deviation(a) / (0.015625 / Math.sqrt(3))).toBeCloseTo(1, 1);
    expect(most(b)).toBe(0);
  });

  it('gaussian, with a deviation of one over the rank', async () => {
    for (const rank of [2, 8]) {
      const { a, b } = await started('gaussian', { out: 8, in: 4096, rank });
      expect(deviation(a) * rank).toBeCloseTo(1, 1);
      expect(most(b)).toBe(0);
    }
  });

  it('with both factors random where it is switched off', async () => {
    const { a, b } = await started(false, { out: 2048, in: 1024, rank: 4 });
    expect(most(a)).toBeLessThanOrEqual(1 / 32);
    expect(most(b)).toBeLessThanOrEqual(1 / 2);
    expect(deviation(a) / (1 / 32 / Math.sqrt(3))).toBeCloseTo(1, 1);
    expect(deviation(b) / (1 / 2 / Math.sqrt(3))).toBeCloseTo(1, 1);
  });

  it('orthogonal: each factor a tenth of gaussians over half of the rows, their product nothing', async () => {
    const { a, b, product } = await started('orthogonal', { out: 512, in: 2048, rank: 8 });
    // Σ over the 4 odd (even) rows of an orthogonal matrix of the squares of a column is 1/2 in the mean.
    expect(deviation(a) / (0.1 * Math.SQRT1_2)).toBeCloseTo(1, 1);
    expect(deviation(b) / (0.1 * Math.SQRT1_2)).toBeCloseTo(1, 1);
    // Next to the 0.01·√8 of unrelated factors.
    expect(most(product)).toBeLessThan(1e-7);
  });

  it('at an embedding the other way round: A zero, B of deviation 1', async () => {
    const { a, b } = await started(true, { out: 64, in: 1024, rank: 4 }, { embedding: true });
    expect([a.length, b.length]).toEqual([4 * 64, 1024 * 4]);
    expect(most(a)).toBe(0);
    expect(deviation(b)).toBeCloseTo(1, 1);
    const random = await started(false, { out: 64, in: 1024, rank: 4 }, { embedding: true });
    expect(deviation(random.a)).toBeCloseTo(1, 0);
    expect(deviation(random.b)).toBeCloseTo(1, 1);
  });
});
