import {
  checkRuns,
  groupedMatMulGradOp,
  groupedMatMulOp,
  packedGroupedMatMulOp,
  runOp,
  ShapeError,
  tensor,
  tensor1d,
  tidy,
  type PackedFormat,
  type PackedShape,
  type Tensor,
} from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { packedFixture, stackedFixture, widthsOf } from './packed-fixture.ts';
import { kernelDistance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';
import type { Host } from './parity.ts';

const random = numbers(7);
const tolerance = 1e-5;

/** Rows of each run, rows before the first and after the last. */
const runsOf = {
  'no rows at all': [0, 0],
  'one row': [0, 1],
  'runs of 1, 7, 64 and 65': [0, 1, 8, 72, 137],
  'few rows each': [0, 1, 3, 6, 10],
  'runs without rows': [0, 0, 7, 7, 71, 71],
  'all rows in one run': [0, 0, 65, 65],
  'rows that are in no run': [3, 10, 17, 30],
  'no rows in any run': [4, 4, 4],
  // More than a task takes, the last piece with few rows.
  'a run of 483': [0, 483, 490],
} as const;
const rowsOf = (ends: readonly number[]): number => ends.at(-1)! + (ends[0] === 0 ? 0 : 5);
const int32 = (ends: readonly number[]): Tensor => tensor1d([...ends], 'int32');

const sizes = [
  [1, 1],
  [7, 65],
  [65, 64],
  [259, 300],
] as const;

const formats: readonly PackedFormat[] = ['codebook4', 'codebook4-nested', 'F16', 'Q4_0', 'Q8_0', 'Q6_K', 'affine', 'affine-symmetric'];

const stacked = (parts: Record<string, Host>, shape: PackedShape, count: number): Record<string, Tensor> =>
  Object.fromEntries(
    Object.entries(stackedFixture(parts, shape, count)).map(([name, { shape: sides, values }]) => [
      name,
      tensor(values, [...sides], values instanceof Int32Array ? 'int32' : 'float32'),
    ]),
  );

describe.each(Object.entries(wasmBuilds))('products over runs of rows (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it('have kernels', () => {
    for (const { kernelName } of [groupedMatMulOp, groupedMatMulGradOp, packedGroupedMatMulOp])
      expect(getKernel(kernelName, getBackend())).toBeDefined();
  });

  for (const [name, ends] of Object.entries(runsOf)) {
    const rows = rowsOf(ends);
    const count = ends.length - 1;

    // The larger matrices where there is enough to do for several tasks.
    it.each(rows > 100 ? sizes : sizes.slice(0, 3))(`${name}: [%i, %i], both ways and the gradient of the matrices`, (out, width) => {
      const w = (): Tensor => random([count, out, width]);
      const forward = { x: random([rows, width]), w: w(), runs: int32(ends) };
      expect(kernelDistance(groupedMatMulOp, forward, { transposed: false }, runOp)).toBeLessThan(tolerance);
      const back = { x: random([rows, out]), w: w(), runs: int32(ends) };
      expect(kernelDistance(groupedMatMulOp, back, { transposed: true }, runOp)).toBeLessThan(tolerance);
      const gradient = { dy: random([rows, out]), x: random([rows, width]), runs: int32(ends) };
      expect(kernelDistance(groupedMatMulGradOp, gradient, {}, runOp)).toBeLessThan(tolerance);
    });
  }

  const packedRuns = (['runs of 1, 7, 64 and 65', 'few rows each', 'rows that are in no run'] as const).flatMap((name) =>
    formats.map((format) => [name, format, widthsOf(format)[1]!] as const),
  );

  it.each([...packedRuns, ['a run of 483', 'Q4_0', 320] as const])('%s: %s in rows of %i, both ways', (name, format, width) => {
    const ends = runsOf[name];
    const [rows, count, out] = [rowsOf(ends), ends.length - 1, 65];
    const { shape, parts } = packedFixture(format, out, width);
    for (const transposed of [false, true]) {
      const inputs = { ...stacked(parts, shape, count), x: random([rows, transposed ? out : width]), runs: int32(ends) };
      expect(kernelDistance(packedGroupedMatMulOp, inputs as never, { ...shape, transposed }, runOp)).toBeLessThan(tolerance);
    }
  });

  it('refuses runs that do not ascend within the rows', () => {
    tidy(() => {
      const [x, w] = [random([6, 4]), random([2, 3, 4])];
      for (const wrong of [
        [0, 4, 3],
        [0, 4, 7],
        [-1, 2, 6],
      ]) {
        expect(() => runOp(groupedMatMulOp, { x, w, runs: int32(wrong) }, { transposed: false })).toThrow(ShapeError);
        expect(() => runOp(groupedMatMulGradOp, { dy: x, x, runs: int32(wrong) }, {})).toThrow(/must ascend/);
        expect(() => checkRuns(Int32Array.from(wrong), 6)).toThrow(ShapeError);
      }
    });
  });
});

describe('products over runs of rows on one thread and on two', () => {
  it.each([
    ['few and many rows', [0, 3, 3, 80, 85, 500]],
    ['all rows in one run', [0, 0, 0, 500]],
  ])('with %s have the same bits', async (_, ends) => {
    const results: number[][][] = [];
    for (const threads of [1, 2]) {
      await useBuild({ threads });
      const values = numbers(3);
      const runs = int32(ends);
      const [x, dy, w] = [values([500, 301]), values([500, 200]), values([ends.length - 1, 200, 301])];
      const { shape, parts } = packedFixture('affine', 200, 320);
      const packed = { ...stacked(parts, shape, ends.length - 1), x: values([500, 320]), runs };
      const outputs = tidy(() => [
        ...runOp(groupedMatMulOp, { x, w, runs }, { transposed: false }),
        ...runOp(groupedMatMulOp, { x: dy, w, runs }, { transposed: true }),
        ...runOp(groupedMatMulGradOp, { dy, x, runs }, {}),
        ...runOp(packedGroupedMatMulOp, packed as never, { ...shape, transposed: false }),
      ]);
      results.push(outputs.map((output) => [...output.dataSync()]));
      for (const each of [...outputs, ...Object.values(packed), x, dy, w]) each.dispose();
    }
    expect(results[1]).toEqual(results[0]);
  });
});
