import { describe, expect, it } from 'vitest';
import { createDraw, memory, mul, noise, sum, tensor2d, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { adamw } from '@niwaki/optim';
import { deviceStates, sizeOf } from '../../testing/src/contract-model.ts';
import { stateBytesOf, trial, type Trial } from '../../testing/src/transform-trial.ts';
import { coordinateSubspace, frugal, galore, spectralSubspace, type Subspace } from '../src/index.ts';
import { onModel } from './on-model.ts';
import { gap, rankOf, wave, zeros } from './arrays.ts';

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

  it('with another rule for the rest moves within the rank of its vectors, with signs in all directions', async () => {
    const ranks: number[] = [];
    for (const rest of ['none', 'sgd', 'sign'] as const) {
      const run = trial(frugal({ learningRate: 1, density: 0.5, split: 'singular', rest }), zeros(48), { shape: [6, 8] });
      for (let i = 0; i < 3; i++) await run.step(wave(48, i), { rate: 0.1 });
      ranks.push(await rankOf(run.values(), [6, 8]));
      run.dispose();
    }
    // Half of 6.
    expect(ranks).toEqual([3, 6, 6]);
  });

  it('decays before it updates, and scales the update and the rest of it', async () => {
    const make = (options: object): Trial =>
      trial(frugal({ learningRate: 1, density: 0.5, weightDecay: 0.1, ...options }), [1, 1, 1, 1], { shape: [2, 2], seed: 4 });
    // Adam's first step in column 1 is the rate: 1·(1 - 0.01·0.1) ± 0.01·0.3, and a tenth of that for signs.
    const signs = make({ scale: 0.3, restScale: 0.1 });
    const values = await signs.step([1, -2, 3, 4], { rate: 0.01 });
    expect(index(signs.state())).toEqual([1]);
    expect(gap(values, [0.999 - 0.0003, 0.999 + 0.003, 0.999 - 0.0003, 0.999 - 0.003])).toBeLessThan(1e-7);
    const itself = make({ scale: 0.3, restScale: 0.1, rest: 'sgd' });
    const moved = await itself.step([1, -2, 3, 4], { rate: 0.01 });
    expect(gap(moved, [0.999 - 0.0003, 0.999 + 0.003, 0.999 - 0.0009, 0.999 - 0.003])).toBeLessThan(1e-7);
    signs.dispose();
    itself.dispose();
  });

  it('does not move an entry of the rest whose gradient is 0', async () => {
    const run = trial(frugal({ learningRate: 1, density: 0 }), [1, 1, 1, 1], { shape: [2, 2] });
    expect(await run.step([0, -3, -0, 1e-30], { rate: 0.25 })).toEqual([1, 1.25, 1, 0.75]);
    run.dispose();
  });

  it('rounds half of a vector to the even number, as Python does', () => {
    for (const [side, rank] of [
      [10, 2],
      [14, 4],
      [18, 4],
    ] as const) {
      const run = trial(frugal({ learningRate: 1, density: 0.25, split: 'singular' }), zeros(side * 20), { shape: [side, 20] });
      expect((run.state()['frugal.at.left'] as Tensor).shape).toEqual([side, rank]);
      run.dispose();
    }
  });

  it('without a new start keeps moments by their place: a column drawn anew goes on with those of the one before it', async () => {
    const run = trial(frugal({ learningRate: 1, density: 0.25, every: 1, reset: false, rest: 'none' }), zeros(8), { shape: [1, 8] });
    const momentum = (): number[] => [...(run.state()['frugal.inner.momentum'] as Tensor).dataSync()];
    let expected = [0, 0];
    const drawn = new Set<string>();
    for (let i = 0; i < 4; i++) {
      const gradient = wave(8, i + 1);
      await run.step(gradient, { rate: 0.1 });
      const columns = index(run.state());
      drawn.add(String(columns));
      expected = expected.map((value, slot) => 0.9 * value + 0.1 * gradient[columns[slot]!]!);
      expect(gap(momentum(), expected)).toBeLessThan(1e-6);
    }
    expect(drawn.size).toBeGreaterThan(1);
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
    expect(() => build({ split: 'tensors' })).toThrow(/split/);
    expect(() => build({ rest: 'adam' })).toThrow(/rest/);
    expect(() => build({ restScale: -1 })).toThrow(/restScale/);
    expect(() => build({ at: 'p.*' }, 'embedding')).toThrow(/cannot be split/);
  });
});

describe('frugal of whole matrices', () => {
  const orders = ['random', 'descending', 'ascending', 'mirror'] as const;
  /** Matrices with state after each of some updates, by their numbers. */
  async function turns(order: (typeof orders)[number], { steps = 8, seed = 3 } = {}): Promise<number[][]> {
    const before = memory().numTensors;
    const optimizer = frugal({ learningRate: 1, every: 2, split: 'blocks', density: 0.3, order });
    const { model, step, end, advance } = await onModel(optimizer, { matricesOnly: true, seed, rate: 0.01 });
    const matrices = [...model.parameters().values()].filter(({ role }) => role === 'matrix');
    const seen: number[][] = [];
    for (let i = 0; i < steps; i++) {
      await advance(1);
      const own = matrices.map(({ path }) => stateBytesOf(deviceStates(step).get(path)!));
      expect(own.reduce((sum, bytes) => sum + bytes, 0)).toBe(step.stateBytes());
      own.forEach((bytes, k) => expect([0, 8 * sizeOf(matrices[k]!.shape)]).toContain(bytes));
      seen.push(own.flatMap((bytes, k) => (bytes > 0 ? [k] : [])));
    }
    end();
    expect(memory().numTensors).toBe(before);
    return seen;
  }

  it.each(orders)('has state for 4 of 14 at a time, in turns, %s', async (order) => {
    const seen = await turns(order);
    for (const chosen of seen) expect(chosen).toHaveLength(4);
    expect([seen[1], seen[3], seen[5]]).toEqual([seen[0], seen[2], seen[4]]);
    const expected = {
      descending: [
        [10, 11, 12, 13],
        [6, 7, 8, 9],
        [2, 3, 4, 5],
        [0, 1, 12, 13],
      ],
      ascending: [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [0, 1, 12, 13],
      ],
      mirror: [
        [0, 1, 12, 13],
        [2, 3, 10, 11],
        [4, 5, 8, 9],
        [0, 6, 7, 13],
      ],
      random: [seen[0], seen[2], seen[4], seen[6]],
    }[order];
    expect([seen[0], seen[2], seen[4], seen[6]]).toEqual(expected);
    expect(new Set(seen.map(String)).size).toBeGreaterThan(2);
  });

  it('draws the same turns for the same seed, and others for another', async () => {
    const once = await turns('random');
    expect(await turns('random')).toEqual(once);
    expect(await turns('random', { seed: 8 })).not.toEqual(once);
  });

  it('moves by Adam in a turn, from its first step on, and by signs out of it', async () => {
    const build = (density: number): Trial =>
      trial(frugal({ learningRate: 1, split: 'blocks', every: 2, density }), zeros(6), { shape: [2, 3] });
    const [all, none, plain] = [build(1), build(0), trial(adamw({ learningRate: 1, weightDecay: 0 }), zeros(6), { shape: [2, 3] })];
    let signs = zeros(6);
    for (let i = 0; i < 2; i++) {
      const gradient = wave(6, i + 1);
      expect(gap(await all.step(gradient, { rate: 0.125 }), await plain.step(gradient, { rate: 0.125 }))).toBeLessThan(1e-7);
      signs = signs.map((value, j) => value - 0.125 * Math.sign(gradient[j]!));
      expect(await none.step(gradient, { rate: 0.125 })).toEqual(signs);
    }
    // A new turn: the first move is of the rate's size, whatever the moments were.
    const before = all.values();
    const after = await all.step(wave(6, 5), { rate: 0.125 });
    after.forEach((value, j) => expect(Math.abs(value - before[j]!)).toBeCloseTo(0.125, 5));
    for (const run of [all, none, plain]) run.dispose();
  });

  it('refuses what blocks cannot have, and an order for anything else', () => {
    expect(() => frugal({ learningRate: 1, order: 'random' })).toThrow(/order is for split 'blocks'/);
    expect(() => frugal({ learningRate: 1, split: 'blocks', order: 'up' as never })).toThrow(/order/);
    expect(() => frugal({ learningRate: 1, split: 'blocks', reset: false })).toThrow(/reset/);
    const odd = frugal({ learningRate: 1, split: 'blocks', order: 'mirror', density: 1 });
    expect(() => trial(odd, zeros(4), { shape: [2, 2] })).toThrow(/mirror/);
    expect(() => frugal({ learningRate: 1, split: 'blocks', direction: galore({ learningRate: 1, rank: 1 }) })).toThrow(/host-work/);
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
