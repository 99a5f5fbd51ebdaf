import { init } from '@niwaki/backend';
import {
  countingSortOp,
  cutWordsOp,
  joinWordsOp,
  groupedMatMulGradOp,
  groupedMatMulOp,
  packedGroupedMatMulOp,
  type PackedFormat,
} from '@niwaki/tensor';
import { beforeAll, describe, expect, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { packedFixture, stackedFixture, widthsOf } from './packed-fixture.ts';
import { expectParity, floats, ints, onGpu, type Host } from './parity.ts';

const missing = await gpuMissing();

// Sums of up to 768 products of numbers in [-1, 1], in another order than the reference's.
const tolerance = 1e-5;
const runsOf = (ends: readonly number[]): Host => ({ shape: [ends.length], values: Int32Array.from(ends) });

const cases = [
  ['no rows at all', [0, 0], 0],
  ['one row', [0, 1], 1],
  ['runs of 1, 7, 64 and 65', [0, 1, 8, 72, 137], 137],
  ['runs without rows', [0, 0, 7, 7, 71, 71], 71],
  ['all rows in one run', [0, 0, 65, 65], 65],
  ['rows that are in no run', [3, 10, 17, 30], 100],
  ['no rows in any run', [4, 4, 4], 64],
  // Tiles of more rows than most of them have.
  ['one long run among short ones', [0, 1, 200, 201], 201],
] as const;

describe.skipIf(missing)('products over runs of rows on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each(cases)('%s: both ways and the gradient of the matrices', async (_, ends, rows) => {
    const count = ends.length - 1;
    const runs = runsOf(ends);
    for (const [out, width] of [
      [1, 1],
      [7, 65],
      [65, 64],
    ] as const) {
      const w = floats([count, out, width], 2);
      await expectParity(groupedMatMulOp as never, { x: floats([rows, width]), w, runs }, { transposed: false }, tolerance);
      await expectParity(groupedMatMulOp as never, { x: floats([rows, out]), w, runs }, { transposed: true }, tolerance);
      await expectParity(groupedMatMulGradOp as never, { dy: floats([rows, out], 3), x: floats([rows, width]), runs }, {}, tolerance);
    }
  });

  const formats: readonly PackedFormat[] = ['codebook4', 'codebook4-nested', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q8_0', 'Q4_K', 'Q6_K'];

  test.each(
    formats.flatMap((format) =>
      widthsOf(format)
        .filter((width) => width < 300)
        .map((width) => [format, width] as const),
    ),
  )('matrices of %s in rows of %i, both ways', async (format, width) => {
    const [out, ends, rows] = [65, [1, 8, 8, 72], 75];
    const { shape, parts } = packedFixture(format, out, width);
    const stored = stackedFixture(parts, shape, ends.length - 1);
    const runs = runsOf(ends);
    await expectParity(
      packedGroupedMatMulOp as never,
      { x: floats([rows, width]), runs, ...stored },
      { ...shape, transposed: false },
      tolerance,
    );
    await expectParity(
      packedGroupedMatMulOp as never,
      { x: floats([rows, out]), runs, ...stored },
      { ...shape, transposed: true },
      tolerance,
    );
  });

  test.each([
    ['affine', 2, 192],
    ['affine', 3, 65],
    ['affine', 4, 192],
    ['affine', 8, 192],
    ['affine-symmetric', 3, 192],
  ] as const)('matrices of %s codes of %i bits in rows of %i, both ways', async (format, bits, width) => {
    const [out, ends, rows] = [33, [0, 1, 65, 65], 66];
    const { shape, parts } = packedFixture(format, out, width, 64, bits);
    const stored = stackedFixture(parts, shape, ends.length - 1);
    const runs = runsOf(ends);
    // s·q - s·z, where the reference has s·(q - z): two roundings of up to 255 scales an entry.
    const open = tolerance * 2 ** Math.max(0, bits - 2);
    await expectParity(
      packedGroupedMatMulOp as never,
      { x: floats([rows, width]), runs, ...stored },
      { ...shape, transposed: false },
      open,
    );
    await expectParity(packedGroupedMatMulOp as never, { x: floats([rows, out]), runs, ...stored }, { ...shape, transposed: true }, open);
  });

  test('runs that do not ascend read and write nothing outside', async () => {
    // What comes out means nothing, but comes out: WebGPU cannot look before it multiplies.
    await init({ device: 'webgpu', software: true });
    const [x, runs] = [floats([65, 7]), runsOf([60, -3, 900, 4])];
    const [dw] = await onGpu(groupedMatMulGradOp as never, { dy: floats([65, 5]), x, runs }, {});
    expect(dw!.values.every((value) => Number.isFinite(value))).toBe(true);
  });

  test('packed words are joined and cut bit for bit', async () => {
    // More digits than f32 has.
    const words = (length: number, seed: number): Host => ints([length], (i) => Math.imul(i + seed, 0x9e3779b1));
    const [joined] = await expectParity(
      joinWordsOp as never,
      { words0: words(65, 1), words1: words(1, 9), words2: words(300, 3) },
      { parts: 3 },
      0,
    );
    expect(joined!.values.slice(65, 67)).toEqual(Int32Array.of(Math.imul(9, 0x9e3779b1), Math.imul(3, 0x9e3779b1)));
    const [cut] = await expectParity(cutWordsOp as never, { words: words(300, 3) }, { from: 7, count: 65 }, 0);
    expect(cut!.values).toEqual(words(300, 3).values.slice(7, 72));
  });

  test.each([
    [0, 3],
    [1, 1],
    [7, 3],
    [65, 8],
    [1000, 8],
    [1000, 300],
    [257, 256],
  ])('%i keys of %i sort as on the host, equal ones in order and strangers last', async (keys, count) => {
    const inputs = { keys: ints([keys], (i) => ((i * 7919) % (count + 2)) - 1) };
    for (const { values, shape } of await expectParity(countingSortOp as never, inputs, { count }, 0)) expect(values.length).toBe(shape[0]);
  });
});
