import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  gradientsOf,
  memory,
  noise,
  onesLike,
  openMemoryLedger,
  recordTape,
  tensor2d,
  tidy,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall, onScaledChannels, tensorQuantizer, tokenQuantizer, type ActivationQuantizer } from '../src/index.ts';
import { oddSizes, productWithOutliers } from './llm-int8.ts';

const call = createCall({ batch: {} });
const numbers = async (t: Tensor): Promise<number[]> => {
  const values = [...(await t.data())];
  t.dispose();
  return values;
};
const expectClose = (given: readonly number[], expected: readonly number[], digits = 6): void => {
  expect(given).toHaveLength(expected.length);
  for (const [i, value] of given.entries()) expect(value).toBeCloseTo(expected[i]!, digits);
};
const free = ({ parts }: ActivationQuantizer): void => Object.values(parts).forEach((part) => part.dispose());

async function rounded(quantizer: ActivationQuantizer, rows: number[][]): Promise<number[]> {
  const x = tensor2d(rows);
  const values = await numbers(tidy(() => quantizer.apply(x, call)));
  x.dispose();
  return values;
}

/** Gradients of Σ y, by x and by the step where it trains. */
async function gradientsBy(quantizer: ActivationQuantizer, row: number[], train: readonly Parameter[]): Promise<number[][]> {
  const x = tensor2d([row]);
  const watched = new Map(train.map((parameter) => [parameter, parameter.read()]));
  const { value, gradients } = gradientsOf(
    () => quantizer.apply(x, createCall({ batch: {}, watched })),
    [x, ...watched.values()],
    (of) => [{ of, value: onesLike(of) }],
  );
  value.dispose();
  const found = await Promise.all(gradients.map((gradient) => numbers(gradient!)));
  x.dispose();
  return found;
}

const row = [-1.2, -0.33, 0.14, 0.6, 2];

describe('a quantizer with one step', () => {
  it('rounds to whole steps inside its range and cuts at the ends', async () => {
    const quantizer = tensorQuantizer('m', { scale: 0.25, zero: 4 }, { bits: 3, symmetric: false });
    expectClose(await rounded(quantizer, [row]), [-1, -0.25, 0.25, 0.5, 0.75]);
    free(quantizer);
  });

  it.each([true, false])('has the gradients of LSQ, symmetric: %s', async (symmetric) => {
    const quantizer = tensorQuantizer('m', { scale: 0.25 }, { bits: 3, symmetric });
    expect(Object.keys(quantizer.parts)).toEqual(symmetric ? ['input_scale'] : ['input_scale', 'input_zero_point']);
    const [dx, step] = await gradientsBy(quantizer, row, [quantizer.step]);
    expectClose(dx!, [0, 1, 1, 1, 0]);
    // -4, .32, .44, -.4 and 3.
    expectClose(step!, [-0.64]);
    for (const [i, expected] of [-4, 0.32, 0.44, -0.4, 3].entries()) {
      expectClose((await gradientsBy(quantizer, [row[i]!], [quantizer.step]))[1]!, [expected]);
    }
    expectClose((await gradientsBy(quantizer, row, []))[0]!, [0, 1, 1, 1, 0]);
    expect(quantizer.gradient).toBe('surrogate');
    free(quantizer);
  });

  it('counts from another zero where values are one-sided', async () => {
    const quantizer = tensorQuantizer('m', { scale: 0.5, zero: 1 }, { bits: 3, symmetric: false });
    expectClose(await rounded(quantizer, [[-2, -0.5, 0.25, 0.75, 2.9, 9]]), [-0.5, -0.5, 0, 1, 3, 3]);
    free(quantizer);
  });

  it('keeps its step above 1e-8', async () => {
    const quantizer = tensorQuantizer('m', { scale: 1e-12 }, { bits: 4, symmetric: true });
    expect((await quantizer.step.read().data())[0]).toBe(Math.fround(1e-8));
    expect(quantizer.step.constraint).toEqual({ floor: 1e-8 });
    free(quantizer);
  });
});

describe('a quantizer of each row', () => {
  it('goes by the largest value where it is symmetric', async () => {
    const given = await rounded(tokenQuantizer({ bits: 8, symmetric: true }), [
      [0.5, -1.27, 0.005, 1],
      [50, -127, 0.5, 100],
    ]);
    // 0.005 and 0.5 lie half way, or as near as f32 gets to it.
    expectClose([...given.slice(0, 2), given[3]!, ...given.slice(4, 6), given[7]!], [0.5, -1.27, 1, 50, -127, 100], 5);
    expect(Math.abs(given[2]!)).toBeLessThan(0.0101);
    expect(given[6]).toBe(0);
  });

  it('goes from the least to the greatest where it is not, 0 among the codes', async () => {
    const quantizer = tokenQuantizer({ bits: 4, symmetric: false });
    expectClose(
      await rounded(quantizer, [
        [-1, -0.2, 0.1, 0.5],
        [3, 1.4, 0.5, 0],
      ]),
      [-1, -0.2, 0.1, 0.5, 3, 1.4, 0.4, 0],
    );
  });

  it.each([true, false])('leaves rows of zeros and rows of tiny numbers as they are, symmetric: %s', async (symmetric) => {
    const given = await rounded(tokenQuantizer({ bits: 8, symmetric }), [
      [0, 0],
      [1e-20, -1e-20],
    ]);
    expect(given.slice(0, 2).map(Math.abs)).toEqual([0, 0]);
    for (const [i, value] of given.slice(2).entries()) expect(Math.abs(value / [1e-20, -1e-20][i]! - 1)).toBeLessThan(0.01);
  });

  it('lets gradients through, and keeps nothing for them', async () => {
    const quantizer = tokenQuantizer({ bits: 4, symmetric: true });
    expectClose((await gradientsBy(quantizer, row, []))[0]!, [1, 1, 1, 1, 1]);
    expect(quantizer.parts).toEqual({});
    const ledger = openMemoryLedger();
    const x = tensor2d([row]);
    const before = ledger.bytes();
    const tape = recordTape(() => quantizer.apply(x, call));
    // What comes out, and no more.
    expect(ledger.bytes() - before).toBe(4 * row.length);
    tape.pull([], [{ of: tape.value, value: onesLike(tape.value) }]);
    tape.value.dispose();
    x.dispose();
    ledger.dispose();
  });
});

describe('outliers, by the rule of LLM.int8', () => {
  const grid = { bits: 8, symmetric: true } as const;
  const rule = tokenQuantizer({ ...grid, outlierThreshold: 6 });

  it('leave their columns in floats, and count for no range', async () => {
    const given = await rounded(rule, [
      [0.5, -1.27, 0.0033, 1, 8],
      [1.1, 2, -6, 0.3, 0.1],
      [5.9, 0, 0, 0, 0],
    ]);
    const [fine, coarse] = [2 / 127, 5.9 / 127];
    expectClose(given, [0.5, -1.27, 0.0033, 1, 8, 70 * fine, 2, -6, 19 * fine, 0.1, 127 * coarse, 0, 0, 0, 0]);
    // What is multiplied in floats is what came, to the last bit.
    expect([given[2], given[4], given[7], given[9]]).toEqual([0.0033, 8, -6, 0.1].map(Math.fround));
  });

  it('widen no range, but the other entries of their columns do', async () => {
    const given = await rounded(rule, [
      [5, 1],
      [7, 1],
    ]);
    // 1 is 25.4 of 127 steps to 5.
    expectClose(given, [5, (25 * 5) / 127, 7, 1]);
  });

  it('change nothing where there are none, bit for bit', async () => {
    const rows = [row, row.map((value) => 2.9 * value)];
    for (const symmetric of [true, false]) {
      const [own, plain] = [{ outlierThreshold: 6 }, {}].map((option) => tokenQuantizer({ ...grid, symmetric, ...option }));
      expect(await rounded(own!, rows)).toEqual(await rounded(plain!, rows));
    }
  });

  it('leave one-sided ranges to the others too', async () => {
    const quantizer = tokenQuantizer({ bits: 4, symmetric: false, outlierThreshold: 6 });
    expectClose(await rounded(quantizer, [[-1, -0.2, 100, 0.1, 0.5]]), [-1, -0.2, 100, 0.1, 0.5]);
  });

  it.each(oddSizes)('make one product of an integer and a float one: %i rows of %i, %i out', async (rows, width, out) => {
    const { given, weight, expected, free: freeAll } = await productWithOutliers(rows, width, out);
    const y = await numbers(tidy(() => weight.apply(rule.apply(given, call), call)));
    expect(y.length).toBe(rows * out);
    for (const [i, value] of y.entries()) expect(Math.abs(value - expected.values[i]!)).toBeLessThan(expected.room);
    // Backward through the decoded matrix, as if nothing had been rounded.
    const gradientOf = (input: (t: Tensor2D) => Tensor2D): Promise<number[]> => {
      const { value, gradients } = gradientsOf(
        () => weight.apply(input(given), call),
        [given],
        (of) => [{ of, value: onesLike(of) }],
      );
      value.dispose();
      return numbers(gradients[0]!);
    };
    expect(await gradientOf((t) => rule.apply(t, call))).toEqual(await gradientOf((t) => t));
    freeAll();
  });

  it('cost little of what they cost without the rule', async () => {
    const [rows, width] = [16, 64];
    const x = noise([rows, width], createDraw(1, 0).at('x'), 'gaussian');
    // Three features of twenty times the size of the others, as models of some billions of parameters have them.
    const values = Array.from((await x.data()) as Float32Array, (value, i) => (i % width < 3 ? 20 * value : value));
    x.dispose();
    const list = Array.from({ length: rows }, (_, r) => values.slice(r * width, (r + 1) * width));
    const lost = async (quantizer: ActivationQuantizer): Promise<number> =>
      (await rounded(quantizer, list)).reduce((sum, value, i) => sum + (i % width < 3 ? 0 : (value - values[i]!) ** 2), 0);
    expect(await lost(rule)).toBeLessThan((await lost(tokenQuantizer(grid))) / 30);
  });
});

it('factors move outliers before the rounding and back after it', async () => {
  const plain = tokenQuantizer({ bits: 3, symmetric: true });
  const scaled = onScaledChannels('m', plain, Float32Array.of(1, 0.25, 1));
  // Of [3, 12, -1] 3 steps of 4, of [3, 3, -1] of 1.
  expectClose(await rounded(plain, [[3, 12, -1]]), [4, 12, 0]);
  expectClose(await rounded(scaled, [[3, 12, -1]]), [3, 12, -1]);
  expectClose((await gradientsBy(scaled, [3, 12, -1], []))[0]!, [1, 1, 1]);
  expect(Object.keys(scaled.parts)).toEqual(['input_factors']);
  free(scaled);
});

it('what is out of range is refused, with the field, the value and the range', () => {
  const before = memory().numTensors;
  const grid = { bits: 4, symmetric: true } as const;
  expect(() => tokenQuantizer({ ...grid, bits: 9 })).toThrow(/bits must be a whole number from 2 to 8, got 9/);
  expect(() => tokenQuantizer({ ...grid, symmetric: 1 as never })).toThrow(ConfigError);
  expect(() => tokenQuantizer({ ...grid, outlierThreshold: 0 })).toThrow(/outlierThreshold must be a finite number above 0, got 0/);
  expect(() => tensorQuantizer('m', { scale: 0 }, grid)).toThrow(/'m': scale must be a finite number above 0, got 0/);
  expect(() => tensorQuantizer('m', { scale: 1, zero: 16 }, { bits: 4, symmetric: false })).toThrow(/zero must be .* 0 to 15, got 16/);
  expect(() => tensorQuantizer('m', { scale: 1, zero: 3 }, grid)).toThrow(/symmetric grid of 4 bits is 8, got 3/);
  expect(() => onScaledChannels('m', tokenQuantizer(grid), Float32Array.of(1, 0))).toThrow(/factors\[1\] must be .*, got 0/);
  expect(memory().numTensors).toBe(before);
});
