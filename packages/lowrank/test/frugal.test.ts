import { describe, expect, it } from 'vitest';
import { createDraw, mul, noise, sum, tensor2d, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { adamw } from '@niwaki/optim';
import { stateBytesOf, trial } from '../../testing/src/transform-trial.ts';
import { coordinateSubspace, frugal, spectralSubspace, type Subspace } from '../src/index.ts';

const zeros = (length: number): number[] => Array.from({ length }, () => 0);
const wave = (length: number, seed: number): number[] => Array.from({ length }, (_, i) => Math.sin(seed + i * (1.3 + seed / 7)));
/** Largest difference. */
const gap = (given: readonly number[], expected: readonly number[]): number =>
  given.length === expected.length ? Math.max(...expected.map((value, i) => Math.abs(given[i]! - value))) : Infinity;
const index = (state: Readonly<Record<string, Tensor | number>>): number[] => [...(state['frugal.at.index'] as Tensor).dataSync()];

describe('frugal', () => {
  it('gives the numbers of the official optimizer: Adam in the drawn column, signs in the other', async () => {
    const run = trial(frugal({ learningRate: 0.01, density: 0.5 }), zeros(4), { shape: [2, 2], seed: 4 });
    const values = [await run.step([1, -2, 3, 4], { rate: 0.01 }), await run.step([0.5, -1, -2, 8], { rate: 0.01 })];
    expect(index(run.state())).toEqual([1]);
    expect(gap(values[0]!, [-0.01, 0.01, -0.01, -0.01])).toBeLessThan(1e-7);
    expect(gap(values[1]!, [-0.02, 0.0193218, 0, -0.0196518])).toBeLessThan(1e-7);
    run.dispose();
  });

  it('of density 1 is AdamW, of density 0 signSGD', async () => {
    const all = trial(frugal({ learningRate: 1, density: 1, reset: false, every: 2 }), zeros(12), { shape: [3, 4] });
    const none = trial(frugal({ learningRate: 1, density: 0 }), zeros(12), { shape: [3, 4] });
    const plain = trial(adamw({ learningRate: 1, weightDecay: 0 }), zeros(12), { shape: [3, 4] });
    let signs = zeros(12);
    for (let i = 0; i < 3; i++) {
      const gradient = wave(12, i);
      expect(gap(await all.step(gradient, { rate: 0.125 }), await plain.step(gradient, { rate: 0.125 }))).toBeLessThan(1e-7);
      signs = signs.map((value, j) => value - 0.125 * Math.sign(gradient[j]!));
      expect(await none.step(gradient, { rate: 0.125 })).toEqual(signs);
    }
    expect(stateBytesOf(none.state())).toBe(0);
    for (const run of [all, none, plain]) run.dispose();
  });

  it.each(['columns', 'rows', 'entries'] as const)(
    'draws %s anew every so often, never in between, and the same for the same seed',
    async (split) => {
      const sequence = async (seed: number): Promise<number[][]> => {
        const run = trial(frugal({ learningRate: 1, every: 2, split }), zeros(96), { shape: [8, 12], seed });
        const seen: number[][] = [];
        for (let i = 0; i < 6; i++) {
          await run.step(wave(96, i), { rate: 0.1 });
          seen.push(index(run.state()));
        }
        run.dispose();
        return seen;
      };
      const seen = await sequence(3);
      expect(seen[0]!.length).toBe({ columns: 3, rows: 2, entries: 24 }[split]);
      for (const chosen of seen) expect(new Set(chosen).size).toBe(chosen.length);
      expect([seen[1], seen[3], seen[5]]).toEqual([seen[0], seen[2], seen[4]]);
      expect(new Set([seen[0], seen[2], seen[4]].map(String)).size).toBeGreaterThan(1);
      expect(await sequence(3)).toEqual(seen);
      expect(await sequence(8)).not.toEqual(seen);
    },
  );

  it('starts its moments anew with a new choice: every drawn entry moves by the rate', async () => {
    const run = trial(frugal({ learningRate: 1, every: 2, rest: 'none' }), zeros(32), { shape: [4, 8] });
    let before = run.values();
    for (let i = 0; i < 3; i++) {
      if (i === 2) before = run.values();
      await run.step(wave(32, i + 1), { rate: 0.1 });
    }
    const chosen = new Set(index(run.state()));
    const moved = run.values().map((value, i) => Math.abs(value - before[i]!));
    moved.forEach((distance, i) => expect(distance).toBeCloseTo(chosen.has(i % 8) ? 0.1 : 0, 5));
    run.dispose();
  });

  it('leaves entries where they are whose rest is 0, whatever the rounding', async () => {
    const run = trial(frugal({ learningRate: 1, density: 0.5, split: 'singular' }), zeros(24), { shape: [4, 6] });
    // Rank one: all of it is in the subspace.
    const gradient = Array.from({ length: 24 }, (_, i) => Math.cos(Math.floor(i / 6)) * (i % 6 === 2 ? 0 : Math.sin((i % 6) + 1)));
    const values = await run.step(gradient, { rate: 0.1 });
    const inside = trial(frugal({ learningRate: 1, density: 0.5, split: 'singular', rest: 'none' }), zeros(24), { shape: [4, 6] });
    expect(values).toEqual(await inside.step(gradient, { rate: 0.1 }));
    run.dispose();
    inside.dispose();
  });

  it('refuses what it cannot do', () => {
    const build = (options: object, role: 'matrix' | 'embedding' = 'matrix'): unknown =>
      trial(frugal({ learningRate: 1, ...options } as never), zeros(4), { shape: [2, 2], role });
    expect(() => build({ density: 1.5 })).toThrow(/density/);
    expect(() => build({ split: 'blocks' })).toThrow(/split/);
    expect(() => build({ rest: 'adam' })).toThrow(/rest/);
    expect(() => build({ restScale: -1 })).toThrow(/restScale/);
    expect(() => build({ at: 'p.*' }, 'embedding')).toThrow(/cannot be split/);
  });
});

const subspaces: Readonly<Record<string, (shape: [number, number]) => Subspace>> = {
  columns: (shape) => coordinateSubspace(shape, { over: 'columns', count: 3 }),
  rows: (shape) => coordinateSubspace(shape, { over: 'rows', count: 3 }),
  entries: (shape) => coordinateSubspace(shape, { over: 'entries', count: 11 }),
  'the left singular vectors': (shape) => spectralSubspace(shape, { rank: 3, side: 'left' }),
  'the right singular vectors': (shape) => spectralSubspace(shape, { rank: 3, side: 'right' }),
  'both sides': (shape) => spectralSubspace(shape, { rank: 3, side: 'full' }),
  'random vectors': (shape) => spectralSubspace(shape, { rank: 3, side: 'right', from: 'chance' }),
};

describe.each(Object.entries(subspaces))('the subspace of %s', (_, make) => {
  it.each<[number, number]>([
    [7, 5],
    [5, 7],
    [16, 16],
  ])('of %d by %d is projected on, and its rest is perpendicular to it', async (rows, columns) => {
    const shape: [number, number] = [rows, columns];
    const subspace = make(shape);
    const gradient = tensor2d(wave(rows * columns, 1), shape);
    const at = await subspace.choose(gradient, createDraw(1, 2).at('x'));
    const initial = subspace.initial();
    expect(Object.keys(at)).toEqual(Object.keys(initial));
    for (const [name, value] of Object.entries(at))
      expect([value.shape, value.dtype]).toEqual([initial[name]!.shape, initial[name]!.dtype]);
    const [again, product, small] = tidy(() => {
      const other = noise([...subspace.shape], createDraw(2, 2).at('y'), 'gaussian') as Tensor2D;
      const back = subspace.down(subspace.up(other, at), at);
      const down = subspace.down(gradient, at);
      const rest =
        subspace.rest?.(gradient, at) ??
        tensor2d(
          gradient.dataSync().map((value, i) => value - subspace.up(down, at).dataSync()[i]!),
          shape,
        );
      const inner = sum(mul(subspace.up(other, at), rest));
      return [gap([...back.dataSync()], [...other.dataSync()]), inner.dataSync()[0]!, down.shape];
    }) as unknown as [number, number, number[]];
    expect(again).toBeLessThan(1e-5);
    expect(Math.abs(product)).toBeLessThan(1e-5);
    expect(small).toEqual([...subspace.shape]);
    for (const each of [gradient, ...Object.values(at), ...Object.values(initial)]) each.dispose();
  });
});
