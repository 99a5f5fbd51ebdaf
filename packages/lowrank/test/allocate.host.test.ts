import { describe, expect, it } from 'vitest';
import { ConfigError, createDraw, fillNoise } from '@niwaki/tensor';
import { allocate, type Choice } from '../src/index.ts';

const costs = [
  [10, 4, 1],
  [9, 5, 3],
  [2, 1, 0.5],
];
const sizes = [100, 100, 200];
const parts = costs.map((own, part) => own.map((cost, i): Choice => ({ cost, size: (2 + i) * sizes[part]! })));

describe('one format for each matrix within a budget', () => {
  it.each([
    [2.5, 11, [1, 1, 0]],
    [2.75, 8, [2, 1, 0]],
    [3, 6, [2, 2, 0]],
  ])('of %d bits costs %d', (bits, cost, chosen) => {
    const found = allocate(parts, bits * 400);
    expect(found.cost).toBe(cost);
    expect(found.chosen).toEqual(chosen);
    expect(found.size).toBeLessThanOrEqual(bits * 400);
    expect(found.optimal).toBe(true);
  });

  it('below the least is an error that names it', () => {
    expect(() => allocate(parts, 799)).toThrow(ConfigError);
    expect(() => allocate(parts, 799)).toThrow(/800/);
    expect(allocate(parts, 800).chosen).toEqual([0, 0, 0]);
  });

  it('is what trying everything finds, for a hundred random cases', () => {
    for (let seed = 0; seed < 100; seed++) {
      const values = new Float32Array(40);
      fillNoise(values, { ...createDraw(seed, 0).at('case'), distribution: 'uniform', keep: 1 } as never);
      const random = Array.from({ length: 5 }, (_, part) =>
        Array.from({ length: 4 }, (__, i): Choice => ({
          cost: values[8 * part + i]!,
          size: Math.ceil(10 * values[8 * part + 4 + i]!) + 1,
        })),
      );
      const least = random.reduce((sum, own) => sum + Math.min(...own.map(({ size }) => size)), 0);
      const budget = least + (seed % 12);
      expect(allocate(random, budget).cost).toBeCloseTo(bruteForce(random, budget), 10);
    }
  });

  it('of two hundred matrices and four formats ends, close to the relaxation', () => {
    const values = new Float32Array(200);
    fillNoise(values, { ...createDraw(7, 0).at('case'), distribution: 'uniform', keep: 1 } as never);
    const many = Array.from(values, (scale) => [2, 3, 4, 8].map((bits): Choice => ({ cost: (scale + 0.1) * 4 ** -bits, size: bits })));
    const found = allocate(many, 200 * 3.1);
    expect(found.size).toBeLessThanOrEqual(200 * 3.1);
    expect(found.cost).toBeLessThan(many.reduce((sum, own) => sum + own[1]!.cost, 0));
  });
});

function bruteForce(choices: readonly (readonly Choice[])[], budget: number, part = 0): number {
  if (budget < 0) return Infinity;
  if (part === choices.length) return 0;
  return Math.min(...choices[part]!.map(({ cost, size }) => cost + bruteForce(choices, budget - size, part + 1)));
}
