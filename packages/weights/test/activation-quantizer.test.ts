import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  gradientsOf,
  memory,
  onesLike,
  openMemoryLedger,
  recordTape,
  tensor2d,
  tidy,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import { createCall, onScaledChannels, tensorQuantizer, tokenQuantizer, type ActivationQuantizer } from '../src/index.ts';

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
  expect(() => tensorQuantizer('m', { scale: 0 }, grid)).toThrow(/'m': scale must be a finite number above 0, got 0/);
  expect(() => tensorQuantizer('m', { scale: 1, zero: 16 }, { bits: 4, symmetric: false })).toThrow(/zero must be .* 0 to 15, got 16/);
  expect(() => tensorQuantizer('m', { scale: 1, zero: 3 }, grid)).toThrow(/symmetric grid of 4 bits is 8, got 3/);
  expect(() => onScaledChannels('m', tokenQuantizer(grid), Float32Array.of(1, 0))).toThrow(/factors\[1\] must be .*, got 0/);
  expect(memory().numTensors).toBe(before);
});
