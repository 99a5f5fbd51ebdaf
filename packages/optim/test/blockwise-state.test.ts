import { describe, expect, it } from 'vitest';
import { bytesOf, ConfigError, div, max, maximum, memory, mul, reshape, round, scalar, type Tensor } from '@niwaki/tensor';
import { stateBytesOf, trial } from '../../testing/src/transform-trial.ts';
import { adamw, blockwiseState, chain, lion, scaleByAdam, scaleByLearningRate, sgd, type State, type Transform } from '../src/index.ts';

const codes = (state: State, name: string, count: number): number[] => [
  ...bytesOf((state[`${name}.codes`] as Tensor).dataSync() as Int32Array, count),
];
const scales = (state: State, name: string): number[] => [...(state[`${name}.scales`] as Tensor).dataSync()];
const near = (given: readonly number[], expected: readonly number[], precision = 6): void =>
  expected.forEach((value, i) => expect(given[i]).toBeCloseTo(value, precision));

const filled = (length: number, value: number): number[] => Array.from({ length }, () => value);
const first = [1, -0.5, 0.1, -1e-7];
const second = [0.5, -0.5, -0.3, 0];

/**
 * The first and last mean square error of a two-layer perceptron, 64 to 64 to 64 with tanh between, each matrix large
 * enough for 8 bits. Its inputs differ by three decades, and so do its gradients; noise in the targets keeps the error up.
 */
async function perceptronLoss(make: () => Transform): Promise<{ first: number; last: number }> {
  const [side, rows, steps] = [64, 48, 40];
  let state = 1;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  const matrix = (out: number, size: number): number[] => Array.from({ length: out * side }, () => size * uniform());
  /** a·b for a [m, side]; `b` gives the entry of row k and column j. */
  const product = (a: readonly number[], m: number, b: (k: number, j: number) => number): number[] =>
    Array.from({ length: m * side }, (_, e) => {
      const [i, j] = [Math.floor(e / side), e % side];
      let sum = 0;
      for (let k = 0; k < side; k++) sum += a[i * side + k]! * b(k, j);
      return sum;
    });
  const transposed = (w: readonly number[]) => (k: number, j: number) => w[j * side + k]!;
  const forward = (x: readonly number[], w1: readonly number[], w2: readonly number[]): { h: number[]; y: number[] } => {
    const h = product(x, rows, transposed(w1)).map(Math.tanh);
    return { h, y: product(h, rows, transposed(w2)) };
  };
  const x = matrix(rows, 1).map((value, e) => value * 10 ** -(e % 4));
  const target = forward(x, matrix(side, 1), matrix(side, 0.5)).y.map((value) => value + 0.5 * uniform());
  const runs = [matrix(side, 0.2), matrix(side, 0.2)].map((start) => trial(make(), start, { shape: [side, side] }));
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const [w1, w2] = runs.map((run) => run.values()) as [number[], number[]];
    const { h, y } = forward(x, w1, w2);
    const error = y.map((value, e) => value - target[e]!);
    losses.push(error.reduce((sum, value) => sum + value * value, 0) / error.length);
    const back = product(error, rows, (k, j) => w2[k * side + j]!).map((value, e) => value * (1 - h[e]! ** 2));
    const gradient = (rowsOut: readonly number[], rowsIn: readonly number[]): number[] => {
      const sums = Array.from({ length: side * side }, () => 0);
      for (let r = 0; r < rows; r++)
        for (let o = 0; o < side; o++) for (let i = 0; i < side; i++) sums[o * side + i]! += rowsOut[r * side + o]! * rowsIn[r * side + i]!;
      return sums.map((value) => value / rows);
    };
    const rate = 0.02 * (1 - step / steps);
    await runs[0]!.step(gradient(back, x), { rate });
    await runs[1]!.step(gradient(error, h), { rate });
  }
  for (const run of runs) run.dispose();
  return { first: losses[0]!, last: losses.at(-1)! };
}

describe('adam in 8 bits', () => {
  it('gives the numbers of bitsandbytes, without the guard', async () => {
    const run = trial(adamw({ learningRate: 0.01, weightDecay: 0, state: { minSize: 0, strictBnb: true } }), [0, 0, 0, 0]);
    near(await run.step(first, { rate: 0.01 }), [-0.01, 0.01, -0.01, 0.00909091]);
    expect(codes(run.state(), 'adam.momentum', 4)).toEqual([255, 35, 190, 126]);
    expect(codes(run.state(), 'adam.variance', 4)).toEqual([255, 148, 62, 0]);
    near([...scales(run.state(), 'adam.momentum'), ...scales(run.state(), 'adam.variance')], [0.1, 0.001], 7);
    near(await run.step(second, { rate: 0.01 }), [-0.01932177, 0.01999567, -0.00502484]);
    // The second moment of the last entry became 0: a step of 26 times the rate.
    expect(run.values()[3]! / 0.26961723).toBeCloseTo(1, 3);
    expect(codes(run.state(), 'adam.momentum', 4)).toEqual([255, 22, 60, 126]);
    expect(codes(run.state(), 'adam.variance', 4)).toEqual([255, 169, 112, 0]);
    near([...scales(run.state(), 'adam.momentum'), ...scales(run.state(), 'adam.variance')], [0.14, 0.00124898], 7);
    run.dispose();
  });

  it('never takes that step with the guard, which is the default', async () => {
    const run = trial(adamw({ learningRate: 0.01, weightDecay: 0, state: { minSize: 0 } }), [0, 0, 0, 0]);
    const before = (await run.step(first, { rate: 0.01 }))[3]!;
    expect(codes(run.state(), 'adam.variance', 4)).toEqual([255, 148, 62, 1]);
    const after = (await run.step(second, { rate: 0.01 }))[3]!;
    expect(Math.abs(after - before)).toBeLessThan(0.01);
    run.dispose();
  });

  it('decays what it has updated, unlike in 32 bits', async () => {
    const after = async (options: object): Promise<number> => {
      const run = trial(adamw({ learningRate: 1, weightDecay: 0.5, ...options }), [1]);
      const [value] = await run.step([3], { rate: 0.1 });
      run.dispose();
      return value!;
    };
    expect(await after({})).toBeCloseTo(1 * 0.95 - 0.1, 6);
    expect(await after({ state: '8bit' })).toBeCloseTo((1 - 0.1) * 0.95, 6);
    expect(await after({ state: '8bit', decayOrder: 'before' })).toBeCloseTo(1 * 0.95 - 0.1, 6);
  });
});

it('gives the numbers of lion, in 32 and in 8 bits', async () => {
  const full = trial(lion({ learningRate: 0.01, weightDecay: 0.1 }), [1, 1, 1]);
  near(await full.step([0.1, -0.2, 0], { rate: 0.01 }), [0.989, 1.009, 0.999]);
  near([...(full.state()['lion.momentum'] as Tensor).dataSync()], [0.001, -0.002, 0], 8);
  near(await full.step([-0.01, 0.5, 0.1], { rate: 0.01 }), [0.998011, 0.997991, 0.988001]);
  near([...(full.state()['lion.momentum'] as Tensor).dataSync()], [0.00089, 0.00302, 0.001], 8);
  full.dispose();
  const run = trial(lion({ learningRate: 0.01, weightDecay: 0.1, state: { minSize: 0 } }), [1, 1, 1, 1]);
  near(await run.step(first, { rate: 0.01 }), [0.989, 1.009, 0.989, 1.009]);
  expect(codes(run.state(), 'lion.momentum', 4)).toEqual([255, 35, 190, 126]);
  near(scales(run.state(), 'lion.momentum'), [0.01], 8);
  near(await run.step(second, { rate: 0.01 }), [0.9780111, 1.0179911, 0.9980111, 1.0179911]);
  expect(codes(run.state(), 'lion.momentum', 4)).toEqual([255, 23, 61, 126]);
  run.dispose();
});

it('goes on with lion by what it remembers, and by nothing where there is nothing to remember', async () => {
  const run = trial(lion({ learningRate: 1 }), [1, 1]);
  expect(await run.step([0, 0.5], { rate: 0.25 })).toEqual([1, 0.75]);
  for (const expected of [0.5, 0.25]) expect(await run.step([0, 0], { rate: 0.25 })).toEqual([1, expected]);
  // A rate of 0 moves the momentum alone.
  const before = [...(run.state()['lion.momentum'] as Tensor).dataSync()];
  expect(await run.step([3, 3], { rate: 0 })).toEqual([1, 0.25]);
  near([...(run.state()['lion.momentum'] as Tensor).dataSync()], [0.03, 0.99 * before[1]! + 0.03]);
  run.dispose();
});

it('comes within the rate of a minimum with lion, and swings there', async () => {
  const run = trial(lion({ learningRate: 1 }), [1, -0.7]);
  const seen: number[][] = [];
  for (let step = 0; step < 400; step++)
    seen.push(
      await run.step(
        run.values().map((value, i) => value * 10 ** (2 * i)),
        { rate: 0.01 },
      ),
    );
  for (const [i] of [0, 1].entries()) {
    const last = seen.slice(-100).map((values) => values[i]!);
    expect(Math.min(...last.map(Math.abs))).toBeLessThan(0.01);
    // It never comes to rest: the rate has to fall.
    for (let step = 1; step < last.length; step++) expect(Math.abs(last[step]! - last[step - 1]!)).toBeCloseTo(0.01, 6);
  }
  run.dispose();
});

it('moves every entry by the rate with lion, whatever the size of the gradient', async () => {
  const runs = [1, 1000].map((factor) => ({ factor, run: trial(lion({ learningRate: 1 }), [0, 0, 0]) }));
  for (const { factor, run } of runs) {
    for (const gradient of [
      [0.3, -2, 0],
      [-0.1, 5, 1e-6],
    ])
      await run.step(
        gradient.map((value) => value * factor),
        { rate: 2 ** -6 },
      );
  }
  expect(runs[0]!.run.values()).toEqual(runs[1]!.run.values());
  expect(runs[0]!.run.values().every((value) => Number.isInteger(value * 64))).toBe(true);
  for (const { run } of runs) run.dispose();
});

describe('one op for decoding, adam and encoding', () => {
  const wave = (length: number, phase: number): number[] =>
    Array.from({ length }, (_, i) => Math.sin(phase + i * 1.3) * 10 ** -((i * 7) % 9));

  it.each([
    [[4], {}, {}],
    [[7, 31], {}, { blockSize: 64 }],
    [[13, 77], { correctLast: true, eps: 1e-6 }, { strictBnb: true }],
    [[65, 129], { beta1: 0, beta2: 0.95 }, {}],
  ] as const)('moves [%s] as the three did, bit for bit: %o, %o', async (shape, adam, options) => {
    const before = memory().numTensors;
    const size = shape.reduce((a: number, b) => a * b, 1);
    const { updateCoded, ...apart } = scaleByAdam(adam);
    expect(updateCoded).toBeDefined();
    const runs = [scaleByAdam(adam), apart].map((inner) =>
      trial(chain(blockwiseState(inner as Transform, { minSize: 0, ...options }), scaleByLearningRate()), wave(size, 0), { shape }),
    );
    for (let step = 0; step < 4; step++) {
      const [given, wanted] = [await runs[0]!.step(wave(size, step), { rate: 0.1 }), await runs[1]!.step(wave(size, step), { rate: 0.1 })];
      expect(given).toEqual(wanted);
      const [state, expected] = runs.map((run) => run.state());
      expect(Object.keys(state!)).toEqual(Object.keys(expected!));
      for (const [name, value] of Object.entries(state!)) {
        expect((value as Tensor).dataSync()).toEqual((expected![name] as Tensor).dataSync());
      }
    }
    for (const run of runs) run.dispose();
    expect(memory().numTensors).toBe(before);
  });
});

describe('the state', () => {
  it('takes 2.03 bytes an entry from 4096 entries on, and stays f32 below', () => {
    const before = memory().numTensors;
    for (const [size, expected] of [
      [4095, 8 * 4095],
      [4096, 2 * 4096 + 8 * 16],
      [10_000, 2 * 10_000 + 8 * 40],
      [65_536, 2.031_25 * 65_536],
    ] as const) {
      const run = trial(adamw({ learningRate: 1, state: '8bit' }), filled(size, 0));
      expect(stateBytesOf(run.state())).toBe(expected);
      run.dispose();
    }
    expect(memory().numTensors).toBe(before);
  });

  it('stays f32 for what is named', () => {
    const optimizer = adamw({ learningRate: 1, state: { except: { roles: ['embedding'] } } });
    const zeros = filled(4096, 0);
    const [embedding, matrix] = [trial(optimizer, zeros, { role: 'embedding' }), trial(optimizer, zeros)];
    expect(stateBytesOf(embedding.state())).toBe(8 * 4096);
    expect(stateBytesOf(matrix.state())).toBe(2 * 4096 + 128);
    embedding.dispose();
    matrix.dispose();
  });

  it('learns as in 32 bits, which a second moment in even steps would not', async () => {
    const inner = scaleByAdam();
    /** Adam with the second moment in 255 even steps a block, as the dynamic map is not. */
    const even: Transform = {
      ...(inner as Transform),
      update: (gradient, state, context) => {
        const made = (inner as Transform).update(gradient, state, context);
        const { shape } = context.parameter;
        const blocks = reshape(made.state['variance'] as Tensor, [-1, 256]);
        const step = div(maximum(max(blocks, 1, true), 1e-38), 255);
        return { ...made, gated: false, state: { ...made.state, variance: reshape(mul(round(div(blocks, step)), step), [...shape]) } };
      },
    };
    const losses = {
      full: await perceptronLoss(() => chain(inner, scaleByLearningRate())),
      dynamic: await perceptronLoss(() => chain(blockwiseState(inner as Transform), scaleByLearningRate())),
      even: await perceptronLoss(() => chain(even, scaleByLearningRate())),
    };
    expect(losses.full.last).toBeLessThan(0.2 * losses.full.first);
    expect(Math.abs(losses.dynamic.last / losses.full.last - 1)).toBeLessThan(0.02);
    expect(losses.even.last > 2 * losses.full.last || Number.isNaN(losses.even.last)).toBe(true);
  });

  it('does not come from nothing: errors name what is wrong', async () => {
    expect(() => sgd({ learningRate: 1, state: '8bit' })).toThrow(ConfigError);
    expect(() => adamw({ learningRate: 1, state: '4bit' as never })).toThrow(/'32bit', '8bit'/);
    expect(() => adamw({ learningRate: 1, state: { blockSize: 10 } })).toThrow(/multiple of 4/);
    expect(() => lion({ learningRate: 1, beta2: 1 })).toThrow(ConfigError);
    const host = { ...scaleByAdam(), due: () => true, prepare: async (_: unknown, state: State) => state };
    expect(() => blockwiseState(host as never)).toThrow(/laid|lays out state on the host/);
    const saved = trial(adamw({ learningRate: 1, state: { minSize: 0, blockSize: 64 } }), filled(256, 1));
    const other = adamw({ learningRate: 1, state: { minSize: 0, blockSize: 128 } });
    const updates = scalar(1);
    expect(() =>
      other.update({ kind: 'dense', value: saved.parameter.read() }, saved.state(), { parameter: saved.parameter, updates } as never),
    ).toThrow(/block size it was saved with/);
    updates.dispose();
    saved.dispose();
  });
});
