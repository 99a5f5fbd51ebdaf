import { describe, expect, it } from 'vitest';
import { ConfigError, factorMoments, inverseFactor, NumericError } from '@niwaki/tensor';
import { dsnot, magnitude, sparsegpt, wanda } from '../src/index.ts';
import { swapRows } from '../src/dsnot.ts';
import { eliminate } from '../src/eliminate.ts';
import { clearSmallest, keepByRows } from '../src/keep-entries.ts';
import { wandaScores } from '../src/wanda.ts';

const noBreath = async (): Promise<void> => {};
const w = Float32Array.of(4, -2, 0.5, 3, 1, -1, 2, -3);
const squares = [2, 8, 20, 0.1];
const close = (given: ArrayLike<number>, expected: readonly number[], digits = 5): void => {
  expect(given).toHaveLength(expected.length);
  expected.forEach((value, i) => expect(given[i]).toBeCloseTo(value, digits));
};

describe('what is kept', () => {
  it('by Wanda, worked by hand', () => {
    const scores = wandaScores({ values: w, shape: [2, 4] }, squares);
    close(scores, [5.65685, 5.65685, 2.23607, 0.948683, 1.41421, 2.82843, 8.94427, 0.948683], 4);
    expect([...keepByRows(scores, [2, 4], { sparsity: 0.5 })]).toEqual([1, 1, 0, 0, 0, 1, 1, 0]);
  });

  it('by magnitude in a layer: of equal entries the first goes', () => {
    const kept = new Uint8Array(8).fill(1);
    clearSmallest(w.map(Math.abs), kept, { from: 0, to: 8, count: 4 });
    expect([...kept]).toEqual([1, 0, 0, 1, 0, 0, 1, 1]);
  });

  it.each([0, 0.1, 0.5, 0.7, 0.99])('at %d leaves as many zeros in every row', (sparsity) => {
    const scores = Float32Array.from({ length: 10 * 37 }, (_, i) => Math.abs(Math.sin(i * i)) * (i % 5));
    const kept = keepByRows(scores, [10, 37], { sparsity });
    for (let row = 0; row < 10; row++)
      expect(kept.subarray(row * 37, row * 37 + 37).filter((keep) => keep === 0)).toHaveLength(Math.floor(37 * sparsity));
  });

  it('of n and m are exactly n of every m', () => {
    const scores = Float32Array.from({ length: 4 * 32 }, (_, i) => Math.abs(Math.sin(i * 7)));
    const kept = keepByRows(scores, [4, 32], { n: 2, m: 8 });
    for (let from = 0; from < 128; from += 8) {
      const own = [...scores.subarray(from, from + 8)];
      const best = own
        .map((_, i) => i)
        .sort((a, b) => own[b]! - own[a]!)
        .slice(0, 2);
      expect([...kept.subarray(from, from + 8)].flatMap((keep, i) => (keep === 1 ? [i] : []))).toEqual(best.sort((a, b) => a - b));
    }
  });
});

describe('elimination', () => {
  const h = [4, 0, 12, 0.8, 0, 16, 8, -0.8, 12, 8, 40, 2, 0.8, -0.8, 2, 0.2];
  const errorOf = (d: readonly number[]): number => {
    let total = 0;
    for (let row = 0; row < 2; row++)
      for (let i = 0; i < 4; i++) for (let j = 0; j < 4; j++) total += d[row * 4 + i]! * h[i * 4 + j]! * d[row * 4 + j]!;
    return total;
  };

  it('gives the numbers of the worked case', async () => {
    const { factor, dead } = await factorMoments(h, 4, { damping: 0.01, breath: noBreath });
    expect(dead).toEqual([]);
    close([factor[0]!, factor[5]!, factor[10]!, factor[15]!], [2.417796, 0.336509, 0.186539, 1.689102]);
    const result = Float64Array.from(w);
    const kept = await eliminate(result, factor, { shape: [2, 4], amount: { n: 2, m: 4 }, blockSize: 128, breath: noBreath });
    close(result, [0, -2.64537, 1.817039, 0, 0, -1.161343, 2.32926, 0]);
    expect([...kept]).toEqual([0, 1, 1, 0, 0, 1, 1, 0]);
    // Moments by any factor: their mean over rows instead of twice their sum over sequences.
    const mean = await factorMoments(
      h.map((value) => value / 4),
      4,
      { damping: 0.01, breath: noBreath },
    );
    const again = Float64Array.from(w);
    await eliminate(again, mean.factor, { shape: [2, 4], amount: { n: 2, m: 4 }, blockSize: 128, breath: noBreath });
    close(again, [...result], 9);
    // Against the same mask and no update; H is 2 Σ x xᵀ.
    expect(errorOf([...w].map((value, e) => value - result[e]!)) / 2).toBeCloseTo(1.9182, 4);
    expect(errorOf([...w].map((value, e) => (kept[e] === 1 ? 0 : value))) / 2).toBeCloseTo(43, 4);
  });

  it('takes the same part of every block of columns, and moves less than the mask alone does', async () => {
    const [out, n, rows] = [6, 40, 200];
    const x = Array.from({ length: rows }, (_, r) =>
      Array.from({ length: n }, (__, c) => Math.sin(r * 0.7 + c * c * 0.31) + 0.3 * Math.cos(r * c)),
    );
    const gram = Array.from({ length: n * n }, (_, e) => x.reduce((sum, row) => sum + row[Math.floor(e / n)]! * row[e % n]!, 0) / rows);
    const dense = Float64Array.from({ length: out * n }, (_, i) => Math.sin(i * 1.3) * (1 + (i % 4)));
    const { factor } = await factorMoments(gram, n, { damping: 0.01, breath: noBreath });
    const result = dense.slice();
    const kept = await eliminate(result, factor, { shape: [out, n], amount: { sparsity: 0.55 }, blockSize: 16, breath: noBreath });
    for (const [from, to] of [
      [0, 16],
      [16, 32],
      [32, 40],
    ] as const) {
      let zeros = 0;
      for (let row = 0; row < out; row++) for (let i = from; i < to; i++) zeros += kept[row * n + i] === 0 ? 1 : 0;
      expect(zeros).toBe(Math.floor(out * (to - from) * 0.55));
    }
    expect(result.every((value, e) => (value === 0) === (kept[e] === 0))).toBe(true);
    const moved = (other: Float64Array): number => {
      let total = 0;
      for (const row of x)
        for (let o = 0; o < out; o++) total += row.reduce((sum, value, i) => sum + value * (other[o * n + i]! - dense[o * n + i]!), 0) ** 2;
      return total;
    };
    expect(moved(result)).toBeLessThan(0.7 * moved(dense.map((value, e) => value * kept[e]!)));
  });

  it('does not depend on where rows are', async () => {
    const { factor } = await factorMoments(h, 4, { damping: 0.01, breath: noBreath });
    const options = { shape: [2, 4], amount: { sparsity: 0.5 }, blockSize: 2, breath: noBreath } as const;
    const turned = (values: ArrayLike<number>): number[] => [...Array.from(values).slice(4), ...Array.from(values).slice(0, 4)];
    const [one, other] = [Float64Array.from(w), Float64Array.from(turned(w))];
    const kept = await eliminate(one, factor, options);
    expect(turned(await eliminate(other, factor, options))).toEqual([...kept]);
    expect(turned(other)).toEqual([...one]);
  });

  it('refuses moments that are not positive definite, and says what helps', async () => {
    await expect(inverseFactor(Float64Array.of(1, 2, 2, 1), 2, noBreath)).rejects.toThrow(NumericError);
    await expect(factorMoments([1, 2, 2, 1], 2, { damping: 0.01, breath: noBreath })).rejects.toThrow(/positive definite[^]*Raise damping/);
  });

  it('counts columns without input 1, and says which they are', async () => {
    const { dead, factor } = await factorMoments([2, 0, 0, 0], 2, { damping: 0.01, breath: noBreath });
    expect(dead).toEqual([1]);
    expect(factor[3]).toBeCloseTo(1 / Math.sqrt(1 + 0.01 * 1.5), 6);
  });
});

describe('swaps', () => {
  const row = Float32Array.of(1, -0.5, 0.25, 0.8, -1.2, 0.1, 0.6, -0.9, 0.7, -0.2);
  const sums = [0.5, 0.6, 2, -0.7, 0.4, 3, -0.2, 0.4, 0.3, 0.5];
  const variances = [1, 2, 0.5, 1, 1, 4, 1, 0.25, 1, 1];
  const importance = Float32Array.of(1, 0.5, 0.25, 1.6, 1.2, 0.2, 0.6, 0.9, 0.7, 0.2);
  const options = { cycles: 50, threshold: 0.1, variancePower: 1, sameSign: false };
  const start = (): Uint8Array => keepByRows(importance, [1, 10], { sparsity: 0.5 });
  const prunedOf = (kept: Uint8Array): number[] => [...kept].flatMap((keep, i) => (keep === 0 ? [i] : []));
  const run = (change: Partial<typeof options> = {}, known: Partial<{ variances: number[]; sums: number[] }> = {}) => {
    const kept = start();
    const [found] = swapRows(
      { values: row, shape: [1, 10] },
      kept,
      { sums, variances, ...known, scores: importance, importance },
      { ...options, ...change },
    );
    return { pruned: prunedOf(kept), ...found! };
  };

  it('give the worked row', () => {
    expect(prunedOf(start())).toEqual([1, 2, 5, 6, 9]);
    const one = run({ cycles: 1 });
    expect(one.before).toBeCloseTo(0.28, 6);
    expect(one.after).toBeCloseTo(-0.58, 6);
    expect(one.pruned).toEqual([1, 5, 6, 7, 9]);
    const all = run();
    expect(all.after).toBeCloseTo(-0.07, 6);
    expect(all.pruned).toEqual([5, 6, 7, 8, 9]);
  });

  it('prefer entries whose inputs are steady', () => {
    expect(run({ cycles: 1, variancePower: 0 }).pruned).not.toContain(2);
    expect(run({ variancePower: 0 }).pruned).not.toContain(1);
    const changed = run({ cycles: 1 }, { variances: variances.map((v, i) => (i === 2 ? 10 : v)) });
    expect(changed.pruned).toContain(2);
    expect(changed.pruned).not.toContain(5);
    // An input that never varies before all others, though entry 2 gives more.
    const still = run({ cycles: 1 }, { variances: variances.map((v, i) => (i === 5 ? 0 : v)) });
    expect(still.pruned).not.toContain(5);
    expect(Number.isFinite(still.after)).toBe(true);
  });

  it('are the same for rows together and apart', () => {
    const [out, n] = [9, 32];
    const values = Float32Array.from({ length: out * n }, (_, i) => Math.sin(i * i + 3));
    const scores = values.map(Math.abs);
    const known = { sums: Array.from({ length: n }, (_, i) => Math.cos(i)), variances: Array.from({ length: n }, (_, i) => 1 + (i % 3)) };
    const swapped = (from: number, to: number): { kept: Uint8Array; found: ReturnType<typeof swapRows> } => {
      const own = scores.slice(from * n, to * n);
      const kept = keepByRows(own, [to - from, n], { sparsity: 0.5 });
      const tile = { values: values.slice(from * n, to * n), shape: [to - from, n] as const };
      return { kept, found: swapRows(tile, kept, { ...known, scores: own, importance: own }, options) };
    };
    const [whole, tiles] = [swapped(0, 9), [swapped(0, 4), swapped(4, 5), swapped(5, 9)]];
    expect(tiles.flatMap(({ kept }) => [...kept])).toEqual([...whole.kept]);
    expect(tiles.flatMap(({ found }) => found)).toEqual(whole.found);
    expect([...whole.kept]).not.toEqual([...keepByRows(scores, [out, n], { sparsity: 0.5 })]);
  });

  it('leave as many zeros, never make the error larger where its sign must stay, and stop when there is nothing left to swap', () => {
    const [out, n] = [20, 48];
    const values = Float32Array.from({ length: out * n }, (_, i) => Math.sin(i * i + 1));
    const many = Float32Array.from(values, (value, e) => Math.abs(value) * (1 + (e % 3)));
    for (const sameSign of [true, false]) {
      const kept = keepByRows(many, [out, n], { sparsity: 0.6 });
      const found = swapRows(
        { values, shape: [out, n] },
        kept,
        {
          sums: Array.from({ length: n }, (_, i) => Math.cos(i) * 3),
          variances: Array.from({ length: n }, (_, i) => (i % 4) / 2),
          scores: many,
          importance: many,
        },
        { ...options, cycles: 500, sameSign },
      );
      for (let r = 0; r < out; r++) expect(kept.subarray(r * n, r * n + n).filter((keep) => keep === 0)).toHaveLength(28);
      expect(found.every(({ before, after }) => Number.isFinite(after) && (!sameSign || Math.abs(after) <= Math.abs(before)))).toBe(true);
      expect(found.some(({ before, after }) => Math.abs(after) < Math.abs(before))).toBe(true);
    }
  });

  it('do nothing where the error is small, or the inputs sum to 0', () => {
    expect(run({ threshold: 0.3 }).pruned).toEqual([1, 2, 5, 6, 9]);
    expect(run({}, { sums: Array.from(sums, () => 0) }).pruned).toEqual([1, 2, 5, 6, 9]);
  });

  it('within groups leave exactly n of every m', () => {
    const [out, n] = [8, 32];
    const values = Float32Array.from({ length: out * n }, (_, i) => Math.sin(i * i + 2));
    const scores = values.map(Math.abs);
    const kept = keepByRows(scores, [out, n], { n: 2, m: 4 });
    const before = kept.slice();
    const found = swapRows(
      { values, shape: [out, n] },
      kept,
      {
        sums: Array.from({ length: n }, (_, i) => Math.cos(2 * i)),
        variances: Array.from({ length: n }, () => 1),
        scores,
        importance: scores,
      },
      { ...options, sameSign: true, group: 4 },
    );
    expect(kept).not.toEqual(before);
    for (let from = 0; from < out * n; from += 4) expect(kept.subarray(from, from + 4).reduce((a, b) => a + b, 0)).toBe(2);
    // What a group has to give may pull the other way: a row may lose, all of them together gain.
    const total = (errors: number[]): number => errors.reduce((sum, error) => sum + Math.abs(error), 0);
    expect(total(found.map(({ after }) => after))).toBeLessThan(0.8 * total(found.map((r) => r.before)));
    expect(found.every((r) => Math.sign(r.after) === Math.sign(r.before))).toBe(true);
  });
});

describe('bad options', () => {
  const cases: [string, () => unknown, RegExp][] = [
    ['sparsity 1', () => magnitude({ sparsity: 1 }), /magnitude: sparsity must be from 0 to below 1, got 1/],
    ['sparsity below 0', () => wanda({ sparsity: -0.1 }), /wanda: sparsity must be from 0 to below 1, got -0\.1/],
    ['sparsity NaN', () => sparsegpt({ sparsity: Number.NaN }), /sparsity must be from 0 to below 1, got NaN/],
    ['n alone', () => wanda({ n: 2 }), /wanda: give sparsity, or n and m/],
    ['both', () => wanda({ n: 2, m: 4, sparsity: 0.5 }), /give sparsity, or n and m/],
    ['m 6', () => wanda({ n: 2, m: 6 }), /wanda: m must be 4, 8, 16 or 32, got 6/],
    ['n 4 of 4', () => magnitude({ n: 4, m: 4 }), /n must be a whole number from 1 to 3, got 4/],
    ['n 0', () => magnitude({ n: 0, m: 4 }), /n must be a whole number from 1 to 3, got 0/],
    ['store', () => wanda({ store: 'coo' as never }), /store must be 'masked', 'n-of-m' or 'csr', got "coo"/],
    ['store n-of-m without', () => wanda({ store: 'n-of-m' }), /store 'n-of-m' needs n and m/],
    ['scope', () => magnitude({ scope: 'model' as never }), /scope must be 'row', 'layer' or 'global', got "model"/],
    ['scope with n and m', () => magnitude({ n: 2, m: 4, scope: 'row' }), /scope 'row' has no meaning/],
    ['damping 0', () => sparsegpt({ damping: 0 }), /damping must be between 0 and 1, got 0/],
    ['blockSize', () => sparsegpt({ blockSize: 0 }), /blockSize must be a whole number from 1, got 0/],
    ['blockSize of no groups', () => sparsegpt({ n: 2, m: 8, blockSize: 12 }), /a multiple of 8, got 12/],
    ['cycles', () => dsnot({ cycles: 0 }), /cycles must be a whole number from 1, got 0/],
    ['threshold', () => dsnot({ threshold: 0 }), /threshold must be above 0, got 0/],
    ['variancePower', () => dsnot({ variancePower: -1 }), /variancePower must be at least 0, got -1/],
    ['sameSign', () => dsnot({ initial: wanda({ n: 2, m: 4 }), sameSign: false }), /always stops before its sign changes/],
    ['refine', () => dsnot({ refine: [] }), /refine must be 'attention', 'all' or patterns/],
    ['initial', () => dsnot({ initial: dsnot() as never }), /initial must be a pruner, got 'dsnot'/],
    ['store of dsnot', () => dsnot({ store: 'n-of-m' }), /store must be 'masked', 'csr' or, with n and m, 'n-of-m'/],
  ];
  it.each(cases)('are refused with the field, the value and the range: %s', (_, make, message) => {
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(message);
  });

  it('and good ones are the recipe', () => {
    expect(JSON.parse(JSON.stringify(dsnot({ initial: wanda({ sparsity: 0.6 }) })))).toEqual({
      kind: 'dsnot',
      options: {
        initial: { kind: 'wanda', options: { sparsity: 0.6, store: 'masked' } },
        threshold: 0.1,
        variancePower: 1,
        sameSign: false,
        refine: 'attention',
        store: 'masked',
      },
    });
  });
});
