import { describe, expect, it } from 'vitest';
import { ConfigError, createDraw, decodePacked, FormatError, memory, noise, NumericError, tensor2d, type AffineBits } from '@niwaki/tensor';
import {
  affine,
  affineCode,
  affineStep,
  affineValue,
  disposeWeight,
  encodeAffine,
  rowsOfTensor,
  weightBytes,
  type AffineGrid,
  type AffineStep,
  type Weight,
} from '../src/index.ts';

type Options = { bits: AffineBits; groupSize: number; grid: AffineGrid };

async function encoded(rows: number[][], options: Options): Promise<Weight> {
  const shape: [number, number] = [rows.length, rows[0]!.length];
  const source = tensor2d(rows);
  const parts = await encodeAffine('m.weight', shape, rowsOfTensor(source), options);
  source.dispose();
  return affine('m', shape, parts, options);
}

async function dense(weight: Weight): Promise<number[]> {
  const values = weight.dense();
  const host = [...(await values.data())];
  values.dispose();
  return host;
}

/** Codes of one row, in their order. */
async function codesOf(row: number[], options: Options): Promise<number[]> {
  const source = tensor2d([row]);
  const { codes } = await encodeAffine('m.weight', [1, row.length], rowsOfTensor(source), options);
  source.dispose();
  return row.map((_, e) => {
    const bit = e * options.bits;
    return ((codes[bit >> 3]! | ((codes[(bit >> 3) + 1] ?? 0) << 8)) >> (bit & 7)) & (2 ** options.bits - 1);
  });
}

const expectClose = (given: readonly number[], expected: readonly number[]): void => {
  expect(given).toHaveLength(expected.length);
  for (const [i, value] of given.entries()) expect(value).toBeCloseTo(expected[i]!, 6);
};

describe('affine codes', () => {
  it('are exact where the values lie on the grid', async () => {
    const options: Options = { bits: 4, groupSize: 4, grid: 'asymmetric' };
    const row = [-1, -0.2, 0.1, 0.5];
    expect(await codesOf(row, options)).toEqual([0, 8, 11, 15]);
    const weight = await encoded([row], options);
    expectClose(await dense(weight), row);
    expectClose([...(await weight.parts['scales']!.read().data())], [0.1]);
    disposeWeight(weight);
  });

  it('round a row of int8 half to even', async () => {
    // 0.005 lies half way between 0 and 1.
    const codes = await codesOf([0.5, -1.27, 0.005, 1], { bits: 8, groupSize: 4, grid: 'absmax' });
    expect(codes.map((code) => code - 128)).toEqual([50, -127, 0, 100]);
  });

  it('follow the three symmetric conventions', async () => {
    const row = [-7.5, 7.5, 1, 0];
    const decoded = async (grid: AffineGrid): Promise<number[]> => {
      const weight = await encoded([row], { bits: 4, groupSize: 4, grid });
      const values = await dense(weight);
      disposeWeight(weight);
      return values;
    };
    // Step 7.5 / 7.
    expectClose(await decoded('absmax'), [-7.5, 7.5, 7.5 / 7, 0]);
    // Step 1: -7.5 and 7.5 round to -8 and 8, and 8 is cut to 7.
    expectClose(await decoded('gptq'), [-8, 7, 1, 0]);
    expectClose(await decoded('torchao'), [-8, 7, 1, 0]);
  });

  it('cut a group without negative values as GPTQ does, and not as torchao does', async () => {
    const row = [15, 4, 1, 0];
    expect(await codesOf(row, { bits: 4, groupSize: 4, grid: 'gptq' })).toEqual([15, 12, 9, 8]);
    expect(await codesOf(row, { bits: 4, groupSize: 4, grid: 'torchao' })).toEqual([15, 10, 8, 8]);
  });

  it('need not hold 0 in the way of AWQ', async () => {
    const weight = await encoded([[1, 2, 3, 4]], { bits: 2, groupSize: 4, grid: 'awq' });
    // Step 1, zero clamped to 0: codes 1, 2, 3, 3.
    expectClose(await dense(weight), [1, 2, 3, 3]);
    disposeWeight(weight);
  });

  it.each(['asymmetric', 'awq', 'absmax', 'gptq', 'torchao'] as const)('keep a group of zeros zero (%s)', async (grid) => {
    const weight = await encoded([[0, 0, 0, 0]], { bits: 3, groupSize: 4, grid });
    expectClose(await dense(weight), [0, 0, 0, 0]);
    disposeWeight(weight);
  });

  it('shrink the range of a group where that loses less, and nowhere else', () => {
    const options = { bits: 2, grid: 'asymmetric' } as const;
    const error = (values: number[], { scale, zero }: AffineStep): number =>
      values.reduce((total, w) => total + Math.abs(scale * (Math.min(3, Math.max(0, Math.round(w / scale) + zero)) - zero) - w) ** 2.4, 0);
    // -1, 0, 1 and 2 are codes of the step 1, and 2.4 is not.
    const far = [-1, 0, 1, -1, 0, 1, 2, 2.4];
    const [whole, shrunk] = [affineStep(far, [0, 8], options), affineStep(far, [0, 8], { ...options, mse: true })];
    expect(whole.scale).toBeCloseTo(3.4 / 3, 6);
    expect(error(far, shrunk)).toBeLessThan(0.7 * error(far, whole));
    for (let i = 0; i < 80; i++)
      expect(error(far, { scale: ((1 - i / 100) * 3.4) / 3, zero: 1 })).toBeGreaterThan(0.999 * error(far, shrunk));
    const even = [-1, 0, 1, 2, -1, 0, 1, 2];
    expect(affineStep(even, [0, 8], { ...options, mse: true })).toEqual(affineStep(even, [0, 8], options));
  });

  it('shrink the range as the plain sum of powers has it', () => {
    const values = Float32Array.from({ length: 64 * 40 }, (_, i) => Math.sin(i * 12.9898) * Math.exp(Math.sin(i * 78.233)) * 0.03);
    for (const bits of [2, 3, 4] as const) {
      for (let from = 0; from < values.length; from += 64) {
        const group = [...values.subarray(from, from + 64)];
        const shrunk = (part: number): AffineStep =>
          affineStep(
            group.map((w) => part * w),
            [0, 64],
            { bits, grid: 'asymmetric' },
          );
        const error = (step: AffineStep): number =>
          group.reduce((total, w) => total + Math.abs(affineValue(affineCode(w, step, bits), step) - w) ** 2.4, 0);
        const least = Math.min(...Array.from({ length: 80 }, (_, i) => error(shrunk(1 - i / 100))));
        const found = error(affineStep(values, [from, from + 64], { bits, grid: 'asymmetric', mse: true }));
        expect(found).toBeLessThan(least * (1 + 1e-6));
      }
    }
  });

  it('of three bits take three bits', async () => {
    const weight = await encoded([Array.from({ length: 32 }, (_, i) => i % 8)], { bits: 3, groupSize: 32, grid: 'asymmetric' });
    expect((await weight.parts['qweight']!.raw()).bytes).toHaveLength(12);
    expectClose(
      await dense(weight),
      Array.from({ length: 32 }, (_, i) => i % 8),
    );
    // 12 bytes of codes, a scale, and a zero in a word.
    expect(weightBytes(weight)).toBe(12 + 4 + 4);
    disposeWeight(weight);
  });

  // sum(e²) / sum(w²) on normal values.
  it.each([
    [4, 32, 0.00652],
    [4, 64, 0.00829],
    [4, 128, 0.01014],
    [3, 32, 0.0299],
    [3, 64, 0.0382],
    [3, 128, 0.0466],
    [2, 32, 0.165],
    [2, 64, 0.209],
    [2, 128, 0.254],
  ] as const)('of %i bits in groups of %i lose what rounding must lose', async (bits, groupSize, expected) => {
    const shape: [number, number] = [500, 1024];
    const normal = noise(shape, createDraw(7, 1).at(`normal${bits}#${groupSize}`), 'gaussian');
    const host = await normal.data();
    const parts = await encodeAffine('m.weight', shape, rowsOfTensor(normal as never), { bits, groupSize, grid: 'asymmetric' });
    normal.dispose();
    const decoded = new Float32Array(host.length);
    decodePacked({ format: 'affine', out: 500, in: 1024, blockSize: groupSize, bits }, parts as never, 0, host.length, decoded);
    let [error, power] = [0, 0];
    for (let i = 0; i < host.length; i++) {
      error += (decoded[i]! - host[i]!) ** 2;
      power += host[i]! ** 2;
    }
    expect(Math.abs(error / power / expected - 1)).toBeLessThan(0.03);
  });
});

describe('an affine weight', () => {
  it('brings a new matrix into its own form, its columns mapped as before', async () => {
    const before = memory().numTensors;
    const options: Options = { bits: 8, groupSize: 8, grid: 'asymmetric' };
    const source = tensor2d(
      Array.from({ length: 64 }, (_, i) => Math.sin(i)),
      [4, 16],
    );
    const parts = await encodeAffine('m.weight', [4, 16], rowsOfTensor(source), options);
    const order = Int32Array.from({ length: 16 }, (_, k) => (k * 5) % 16);
    const inputScales = Float32Array.from({ length: 16 }, (_, k) => 1 + k / 16);
    const weight = affine('m', [4, 16], { ...parts, order, inputScales }, options);
    const again = await weight.encode!(source, 'n');
    const [given, expected] = [await dense(again), [...(await source.data())]];
    // Half a step of 2 / 255, times a factor below 2.
    for (const [i, value] of given.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThan(0.01);
    expect(Object.keys(again.parts)).toEqual(['qweight', 'scales', 'zeros', 'order', 'input_scales']);
    for (const w of [weight, again]) disposeWeight(w);
    source.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('refuses options and parts that do not fit, by name', async () => {
    const parts = { codes: new Uint8Array(16), scales: new Float32Array(4) };
    const make = (change: object, options: object = {}): (() => Weight) => {
      return () => affine('m', [2, 16], { ...parts, ...change }, { bits: 4, groupSize: 8, ...options });
    };
    expect(make({}, { bits: 5 })).toThrow(/bits must be one of 2, 3, 4, 8, got 5/);
    expect(make({}, { groupSize: 12 })).toThrow(/rows of 16.*got 12/);
    expect(make({}, { groupSize: 12 })).toThrow(ConfigError);
    expect(make({}, { grid: 'asymmetric' })).toThrow(/stores zeros/);
    expect(make({ codes: new Uint8Array(15) })).toThrow(FormatError);
    expect(make({ scales: new Float32Array(5) })).toThrow(/scales.*4 values, got 5/);
    expect(make({ zeros: Uint8Array.of(1, 2, 3, 16) })).toThrow(/holds 16 at 3/);
    expect(make({ order: new Int32Array(16) })).toThrow(/leaves out column 1/);
    expect(make({ inputScales: new Float32Array(16) })).toThrow(/factors are finite and not 0/);
  });

  it('names an entry that is not finite', async () => {
    const source = tensor2d([
      [1, 2],
      [3, NaN],
    ]);
    const work = encodeAffine('m.weight', [2, 2], rowsOfTensor(source), { bits: 4, groupSize: 2, grid: 'absmax' });
    await expect(work).rejects.toThrow(NumericError);
    await expect(work).rejects.toThrow("'m.weight' holds NaN at [1,1]");
    source.dispose();
  });
});
