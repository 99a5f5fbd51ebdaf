import { describe, expect, it } from 'vitest';
import { ConfigError, FormatError, halfToFloat, bfloatToFloat, memory, NumericError, tensor2d } from '@niwaki/tensor';
import {
  disposeWeight,
  normalFloatWeight,
  normalFloatBook,
  normalFloatOf,
  recordOfWeight,
  rowsOfTensor,
  weightBytes,
  weightFrom,
  type NormalFloatOptions,
  type Weight,
} from '../src/index.ts';
import { nf4 } from './nf4.ts';

async function made(rows: number[][], options: NormalFloatOptions): Promise<Weight> {
  const source = tensor2d(rows);
  try {
    return await normalFloatOf('m', [rows.length, rows[0]!.length], rowsOfTensor(source), options);
  } finally {
    source.dispose();
  }
}

async function dense(weight: Weight): Promise<number[]> {
  const values = weight.dense();
  const host = [...(await values.data())];
  values.dispose();
  return host;
}

/** The fields of a part, from its lowest bits on. */
async function fields(weight: Weight, name: string, { bits, count }: { bits: number; count: number }): Promise<number[]> {
  const { bytes } = await weight.parts[name]!.raw();
  return Array.from({ length: count }, (_, k) => {
    let value = 0;
    for (let b = 0; b < bits; b++) value |= ((bytes[(k * bits + b) >> 3]! >> ((k * bits + b) & 7)) & 1) << b;
    return value;
  });
}

const expectClose = (given: readonly number[], expected: readonly number[], digits = 6): void => {
  expect(given).toHaveLength(expected.length);
  expected.forEach((value, i) => expect(given[i]).toBeCloseTo(value, digits));
};

describe('the book of NormalFloat', () => {
  it('has the values of the papers', () => {
    expectClose([...normalFloatBook(2)], [-1, 0, 0.3379152, 1]);
    expectClose([...normalFloatBook(3)], [-1, -0.4786292, -0.2171418, 0, 0.1609302, 0.3379152, 0.562617, 1]);
    expectClose([...normalFloatBook(4)], [...nf4]);
  });

  it.each([2, 3, 4, 8])('of %i bits rises from -1 to 1, with 0 itself in the middle', (bits) => {
    const book = normalFloatBook(bits);
    expect(book).toHaveLength(2 ** bits);
    expect([book[0], book[2 ** (bits - 1) - 1], book.at(-1)]).toEqual([-1, 0, 1]);
    for (let code = 1; code < book.length; code++) expect(book[code]!).toBeGreaterThan(book[code - 1]!);
  });
});

describe('NormalFloat with integers for scales', () => {
  const rows = [
    [0.1, -0.4, 0.2, 0.3, 0.5, -0.8, 0.1, 0.05],
    [1.2, -0.6, 0.3, 0.9, 0.25, 0.2, -0.1, 0],
  ];
  const options = { bits: 3, scaleBits: 4, scaleType: 'float32', blockSize: 4, groupSize: 4 } as const;

  it('gives the numbers worked by hand', async () => {
    const weight = await made(rows, options);
    const read = async (name: string): Promise<number[]> => [...(await weight.parts[name]!.read().data())];
    expectClose(await read('offset'), [0.25]);
    expectClose(await read('weight'), [0.95]);
    expect(await fields(weight, 'scale_codes', { bits: 4, count: 4 })).toEqual([2, 9, 15, 0]);
    expect(await fields(weight, 'codes', { bits: 3, count: 16 })).toEqual([5, 0, 6, 7, 6, 0, 4, 3, 7, 1, 5, 6, 7, 7, 1, 3]);
    const values = await dense(weight);
    // The largest entry of a block comes back as its scale does: -0.4 as -0.376667.
    expectClose(
      values,
      [0.127281, -0.376667, 0.211919, 0.376667, 0.461346, -0.82, 0.131963, 0, 1.2, -0.574355, 0.405498, 0.67514, 0.25, 0.25, -0.119657, 0],
    );
    expect(Math.hypot(...values.map((value, i) => value - rows.flat()[i]!))).toBeCloseTo(0.279213, 6);
    disposeWeight(weight);
  });

  it.each([
    [{ bits: 4, scaleBits: 8, scaleType: 'float32', blockSize: 64, groupSize: 256 }, 4.126953125],
    [{ bits: 3, scaleBits: 8, scaleType: 'float32', blockSize: 64, groupSize: 256 }, 3.126953125],
    [{ bits: 2, scaleBits: 2, scaleType: 'bfloat16', blockSize: 64, groupSize: 256 }, 2.0322265625],
    [{ bits: 2, scaleBits: 8, scaleType: 'bfloat16', blockSize: 16, groupSize: 16 }, 2.5625],
    [{ bits: 8, scaleBits: 8, scaleType: 'float32', blockSize: 16, groupSize: 16 }, 8.625],
  ] as const)('takes the bits of the formula and 4 bytes: %j', async (given, bits) => {
    const wide = Array.from({ length: 128 }, (_, r) => Array.from({ length: 256 }, (__, c) => Math.sin(r * 1.3 + c * c)));
    const weight = await made(wide, given);
    expect(weightBytes(weight)).toBe((bits * 128 * 256) / 8 + 4);
    disposeWeight(weight);
  });

  it.each(['float32', 'float16', 'bfloat16'] as const)('is made again from its record, its group scales as %s', async (scaleType) => {
    const before = memory().numTensors;
    const weight = await made(rows, { ...options, scaleType });
    const again = weightFrom('m', await recordOfWeight(weight));
    expect(await dense(again)).toEqual(await dense(weight));
    expect(again.options).toEqual(weight.options);
    for (const each of [weight, again]) disposeWeight(each);
    expect(memory().numTensors).toBe(before);
  });

  it.each([
    ['float16', halfToFloat, 2 ** -11],
    ['bfloat16', bfloatToFloat, 2 ** -8],
  ] as const)('stores the scale of a group in two bytes: %s', async (scaleType, widened, precision) => {
    const weight = await made(rows, { ...options, scaleType });
    const { bytes } = await weight.parts['weight']!.raw();
    expect(bytes).toHaveLength(2);
    const scale = widened(new Uint16Array(bytes.slice().buffer)[0]!);
    expect(scale).not.toBe(Math.fround(0.95));
    expect(Math.abs(scale / 0.95 - 1)).toBeLessThan(precision);
    // The block of the largest entry comes back by that scale.
    expect((await dense(weight))[8]).toBeCloseTo(scale + 0.25, 6);
    disposeWeight(weight);
  });

  it('keeps blocks of zeros zero, and takes a matrix of one magnitude whose integers are all 0', async () => {
    const zeros = await made([[0, 0, 0, 0, 1, -1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0]], options);
    const values = await dense(zeros);
    expect(values.every(Number.isFinite)).toBe(true);
    expect([...values.slice(0, 4), ...values.slice(8)].every((value) => value === 0)).toBe(true);
    expectClose(values.slice(4, 6), [1, -1]);
    const even = await made([Array.from({ length: 16 }, (_, i) => (i % 2 === 0 ? 2 : -2))], options);
    expect(await fields(even, 'scale_codes', { bits: 4, count: 4 })).toEqual([0, 0, 0, 0]);
    expectClose(
      await dense(even),
      Array.from({ length: 16 }, (_, i) => (i % 2 === 0 ? 2 : -2)),
    );
    for (const each of [zeros, even]) disposeWeight(each);
  });

  it('loses less where entries are coded by the scales that come back than by those before them', async () => {
    const wide = [Array.from({ length: 1024 }, (_, i) => Math.sin(i * i) * (1 + (i % 7)))];
    const few = { bits: 4, scaleBits: 2, scaleType: 'float32', blockSize: 16, groupSize: 64 } as const;
    const weight = await made(wide, few);
    const values = await dense(weight);
    const lost = (found: readonly number[]): number => found.reduce((sum, value, i) => sum + (value - wide[0]![i]!) ** 2, 0);
    const scales = Array.from({ length: 64 }, (_, b) => Math.max(...wide[0]!.slice(16 * b, 16 * b + 16).map(Math.abs)));
    const book = [...normalFloatBook(4)];
    const nearest = (u: number): number =>
      book.reduce((best, value, code) => (Math.abs(value - u) < Math.abs(book[best]! - u) ? code : best), 0);
    // The scale that a block's codes are multiplied with: its largest value over the largest of the book's among its codes.
    const codes = await fields(weight, 'codes', { bits: 4, count: 1024 });
    const back = scales.map((_, b) => {
      const at = codes.slice(16 * b, 16 * b + 16).findIndex((code) => book[code] !== 0);
      return values[16 * b + at]! / book[codes[16 * b + at]!]!;
    });
    const other = wide[0]!.map((value, i) => book[nearest(value / scales[Math.floor(i / 16)]!)]! * back[Math.floor(i / 16)]!);
    expect(lost(values)).toBeLessThan(0.9 * lost(other));
    disposeWeight(weight);
  });

  it('refuses options, shapes, parts and numbers that do not fit', async () => {
    const before = memory().numTensors;
    for (const [change, message] of [
      [{ bits: 5 }, /bits must be one of 2, 3, 4, 8, got 5/],
      [{ scaleBits: 6 }, /scaleBits must be one of/],
      [{ scaleType: 'float64' }, /scaleType must be one of/],
      [{ blockSize: 0 }, /blockSize must be a whole number from 1, got 0/],
      [{ groupSize: 1.5 }, /groupSize must be/],
      [{ groupSize: 3 }, /'m' has 16 entries, which 3 blocks of 4 do not divide/],
    ] as const) {
      const work = made(rows, { ...options, ...change } as NormalFloatOptions);
      await expect(work).rejects.toThrow(ConfigError);
      await expect(work).rejects.toThrow(message);
    }
    await expect(made([[1, 2, Infinity, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]], options)).rejects.toThrow(NumericError);
    const weight = await made(rows, options);
    const { groupScales: stored, ...rest } = { codes: new Uint8Array(6), scaleCodes: new Uint8Array(2), groupScales: weight, offset: 0 };
    expect(() => normalFloatWeight('m', [2, 8], { ...rest, groupScales: stored }, options)).toThrow(FormatError);
    expect(() => normalFloatWeight('m', [2, 8], { ...rest, groupScales: stored, codes: new Uint8Array(5) }, options)).toThrow(FormatError);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });
});
