import { describe, expect, it } from 'vitest';
import { createDraw, dispose, matMul, memory, noise, qr, tensor2d, tidy, type Parameter, type Tensor, type Tensor2D } from '@niwaki/tensor';
import type { Transform, UpdateContext } from '@niwaki/optim';
import { sizeOf } from '../../testing/src/contract-model.ts';
import { stateBytesOf, trial } from '../../testing/src/transform-trial.ts';
import {
  codedSubspace,
  galore,
  inSubspace,
  lazyPace,
  qGalore,
  spectralSubspace,
  type Subspace,
  type SubspaceOptions,
} from '../src/index.ts';
import { lossesOf } from './on-model.ts';
import { gap, wave, zeros } from './arrays.ts';

/** A subspace whose basis is what it is told. */
const given = (basis: readonly number[], [side, rank]: readonly [number, number]): Subspace => ({
  shape: [side, rank],
  initial: () => ({ left: tensor2d(zeros(side * rank), [side, rank]) }),
  choose: async () => ({ left: tensor2d([...basis], [side, rank]) }),
  down: (gradient, at) => matMul(at['left'] as Tensor2D, gradient, true, false),
  up: (small, at) => matMul(at['left'] as Tensor2D, small),
});
const anywhere = createDraw(1, 1).at('p.weight#subspace');

describe('a basis of a few bits', () => {
  it('has the codes of the reference', async () => {
    const subspace = codedSubspace(given([-0.3, 0, 0.1, 0.45], [4, 1]), { bits: 4, groupSize: 256 });
    const at = await subspace.choose(undefined as never, anywhere);
    expect([...(at['left.scales'] as Tensor).dataSync()][0]).toBeCloseTo(0.05, 7);
    expect([...(at['left.zeros'] as Tensor).dataSync()]).toEqual([6]);
    // Two codes a byte, the first in the low half: 0, 6, 8, 15.
    expect([...(at['left.codes'] as Tensor).dataSync()]).toEqual([0xf860]);
    const back = tidy(() => [...subspace.up(tensor2d([1], [1, 1]), at).dataSync()] as never) as unknown as number[];
    expect(gap(back, [-0.3, 0, 0.1, 0.45])).toBeLessThan(1e-7);
    dispose(at);
  });

  it('is nearly orthonormal, and smaller by the formula', async () => {
    const [side, rank] = [1024, 128] as const;
    const random = noise([side, rank], createDraw(3, 1).at('q'), 'gaussian') as Tensor2D;
    const { q, r } = await qr(random);
    const subspace = codedSubspace(given([...q.dataSync()], [side, rank]), { bits: 4, groupSize: 256 });
    const at = await subspace.choose(undefined as never, anywhere);
    const off = tidy(() => {
      const eye = tensor2d(
        Array.from({ length: rank * rank }, (_, i) => (i % (rank + 1) === 0 ? 1 : 0)),
        [rank, rank],
      );
      return [gap(subspace.down(subspace.up(eye, at), at).dataSync(), eye.dataSync())] as never;
    }) as unknown as [number];
    expect(off[0]).toBeGreaterThan(0.001);
    expect(off[0]).toBeLessThan(0.1);
    expect(stateBytesOf(at)).toBe((side * rank) / 2 + 2 * 4 * ((side * rank) / 256) + 4 * side);
    dispose([random, q, r, ...Object.values(at)]);
  });

  it.each<[number, number]>([
    [7, 5],
    [5, 7],
    [16, 16],
  ])('lays out what it chooses as it began, %d by %d', async (rows, columns) => {
    const subspace = codedSubspace(spectralSubspace([rows, columns], { rank: 3, side: rows < columns ? 'left' : 'right' }), {
      bits: 4,
      groupSize: 32,
    });
    const gradient = tensor2d(wave(rows * columns, 1), [rows, columns]);
    const at = await subspace.choose(gradient, anywhere);
    const initial = subspace.initial();
    const form = (parts: Record<string, Tensor>): string[] =>
      Object.entries(parts).map(([name, { shape, dtype }]) => `${name} ${dtype} ${shape}`);
    expect(form(at)).toEqual(form(initial));
    dispose([gradient, ...Object.values(at), ...Object.values(initial)]);
  });
});

/** Updates at which a subspace is chosen, whose first vector turns by the same angle each time. */
async function choices(steps: number, similarity: number, options: Parameters<typeof lazyPace>[0], sign = 1): Promise<number[]> {
  const angle = Math.acos(similarity);
  let count = 0;
  const turning: Subspace = {
    ...given([1, 0], [2, 1]),
    initial: () => ({ first: tensor2d([0, 0], [2, 1]) }),
    choose: async () => {
      const flip = sign ** count;
      const found = { first: tensor2d([flip * Math.cos(angle * count), flip * Math.sin(angle * count)], [2, 1]) };
      count++;
      return found;
    },
  };
  const inner: Transform = { name: 'none', init: () => ({}), update: (update, state) => ({ update, state }) };
  const transform = inSubspace('test', inner, { of: () => turning, every: 1, pace: lazyPace(options), scale: 1, reset: false });
  const parameter = { path: 'p', shape: [2, 2] } as unknown as Parameter;
  const context = { parameter, draw: createDraw(1, 0) } as unknown as UpdateContext;
  const value = tensor2d(zeros(4), [2, 2]);
  let state = transform.init(parameter);
  const chosen: number[] = [];
  for (let age = 0; age < steps; age++) {
    state = { ...state, age };
    if (!transform.due!(state, context)) continue;
    chosen.push(age);
    const before = Object.values(state);
    state = await transform.prepare!({ kind: 'dense', value }, state, context);
    const alive = new Set(Object.values(state));
    for (const old of before) if (typeof old !== 'number' && !alive.has(old)) old.dispose();
  }
  for (const each of Object.values(state)) if (typeof each !== 'number') each.dispose();
  value.dispose();
  return chosen;
}

describe('a lazy subspace', () => {
  it('is chosen 11 times in 20,000 updates where it stays, and 100 times where it does not', async () => {
    const before = memory().numTensors;
    const staying = [0, 200, 400, 600, 800, 1000, 1200, 1600, 3200, 6400, 12_800];
    expect(await choices(20_000, 0.9, {})).toEqual(staying);
    expect(await choices(20_000, 0.9, {}, -1)).toEqual(staying);
    expect(await choices(20_000, 0.1, {})).toEqual(Array.from({ length: 100 }, (_, i) => 200 * i));
    expect(await choices(20_000, 0.9, { threshold: 1.01 })).toHaveLength(100);
    expect(memory().numTensors).toBe(before);
  });

  it('keeps the state inside: it does not begin anew at unequal times', () => {
    const options: SubspaceOptions = { of: () => 'whole', every: 1, scale: 1, pace: lazyPace(), reset: true };
    expect(() => inSubspace('test', { name: 'none', init: () => ({}), update: (update, state) => ({ update, state }) }, options)).toThrow(
      /begins anew/,
    );
  });

  it('takes its own gap, growth, window and bound', async () => {
    expect(await choices(64, 0.9, { every: 2, window: 2, growth: 3, longest: 10 })).toEqual([0, 2, 4, 6, 10, 20, 30, 40, 50, 60]);
  });
});

describe('qGalore', () => {
  it('holds the bytes of the formula, the moments in 8 bits', () => {
    const bytes = (options: object, shape: number[]): number => {
      const run = trial(qGalore({ learningRate: 1, rank: 128, ...options }), zeros(sizeOf(shape)), { shape });
      const found = stateBytesOf(run.state());
      run.dispose();
      return found;
    };
    const before = memory().numTensors;
    const [s, l, rank] = [512, 1376, 128];
    const [groups, blocks] = [Math.ceil((s * rank) / 256), Math.ceil((l * rank) / 256)];
    // Beside the formula: the vector that choices are compared by, and five likenesses.
    const own = 4 * s + 4 * 5;
    expect(bytes({}, [s, l])).toBe((s * rank) / 2 + 8 * groups + 2 * l * rank + 8 * blocks + own);
    expect(bytes({}, [l, s])).toBe(bytes({}, [s, l]));
    expect(bytes({ basisBits: 8, window: 3 }, [s, l])).toBe(s * rank + 8 * groups + 2 * l * rank + 8 * blocks + 4 * s + 4 * 3);
    expect(memory().numTensors).toBe(before);
  });

  it('learns within 2 % of an f32 basis', async () => {
    const options = { learningRate: 1, rank: 8, every: 10, scale: 1, state: { minSize: 64, blockSize: 64 } };
    const setting = { steps: 15, rate: 1e-3 };
    const [coded, floats] = [await lossesOf(qGalore(options), setting), await lossesOf(galore(options), setting)];
    expect(coded.at(-1)!).toBeLessThan(coded[0]! - 0.3);
    expect(Math.abs(coded.at(-1)! / floats.at(-1)! - 1)).toBeLessThan(0.02);
  });

  it('refuses what it cannot do', () => {
    const build = (options: object): Transform => qGalore({ learningRate: 1, rank: 1, ...options } as never);
    expect(() => build({ rank: 0 })).toThrow(/q-galore: rank/);
    expect(() => build({ basisBits: 5 })).toThrow(/basisBits/);
    expect(() => build({ basisGroupSize: 16 })).toThrow(/basisGroupSize/);
    expect(() => build({ threshold: -0.1 })).toThrow(/threshold/);
    expect(() => build({ growth: 1.5 })).toThrow(/growth/);
    expect(() => build({ window: 0 })).toThrow(/window/);
    expect(() => build({ longest: 0.5 })).toThrow(/longest/);
    expect(() => build({ every: 0 })).toThrow(/every/);
  });
});
