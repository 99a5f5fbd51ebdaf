import { describe, expect, it } from 'vitest';
import { bytesOf, ConfigError, memory, scalar, type Tensor } from '@niwaki/tensor';
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

  it('learns as in 32 bits', async () => {
    const size = 64 * 64;
    const target = Array.from({ length: size }, (_, i) => Math.sin(i * 0.37) * 10 ** -(i % 4));
    const error = async (options: object): Promise<number> => {
      const run = trial(adamw({ learningRate: 1, weightDecay: 0, ...options }), filled(size, 0));
      let values = run.values();
      for (let i = 0; i < 60; i++) {
        const scale = (j: number): number => 10 ** -(j % 3);
        values = await run.step(
          values.map((value, j) => (value - target[j]!) * scale(j)),
          { rate: 0.05 * (1 - i / 60) },
        );
      }
      run.dispose();
      return values.reduce((sum, value, j) => sum + (value - target[j]!) ** 2, 0);
    };
    const start = target.reduce((sum, value) => sum + value ** 2, 0);
    const [full, small] = [await error({}), await error({ state: '8bit' })];
    expect(full).toBeLessThan(0.1 * start);
    expect(Math.abs(small - full)).toBeLessThan(0.02 * start);
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
