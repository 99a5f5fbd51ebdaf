import { init } from '@niwaki/backend';
import { packedMatMulOp, packedRowsOp } from '@niwaki/tensor';
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import {
  backend,
  BatchMatMul,
  engine,
  tensor,
  UnsortedSegmentSum,
  unsortedSegmentSum,
  type Tensor,
  type TensorInfo,
} from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { dispatch } from '../src/webgpu/dispatch.ts';
import { matMulProgram } from '../src/webgpu/kernels/mat-mul.wgsl.ts';
import { tileColumns, tileRows } from '../src/webgpu/kernels/tiles.wgsl.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { packedFixture, packedFormats, widthsOf } from './packed-fixture.ts';
import { expectParity, floats, ints, type Host } from './parity.ts';

const missing = await gpuMissing();

/** A kernel of tfjs's as an op, its truth being tfjs's own kernel on the cpu device. */
const kernelOp = (kernelName: string) => ({
  kernelName,
  reference: (inputs: Record<string, Tensor>, attrs: object) => [engine().runKernel(kernelName, inputs, attrs as never) as Tensor],
});

// Sums of up to 1000 products of numbers in [-1, 1], in another order than the reference's.
const tolerance = 1e-5;

describe.skipIf(missing)('products on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  const shapes = [
    [1, 7, 1],
    [1, 65, 65],
    [3, 130, 70],
    [4, 64, 1],
    [7, 65, 64],
    [17, 3, 33],
    [64, 64, 65],
    [65, 33, 7],
    [130, 100, 130],
    [5, 1000, 3],
    [1, 64, 9],
    [3, 132, 70],
  ] as const;

  test.each(shapes)('%i x %i x %i in all four transpositions', async (m, k, n) => {
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        const inputs = { a: floats(transposeA ? [k, m] : [m, k]), b: floats(transposeB ? [n, k] : [k, n], 2) };
        await expectParity(kernelOp(BatchMatMul) as never, inputs, { transposeA, transposeB }, tolerance);
      }
    }
  });

  test.each([
    [[3], [3]],
    [[3], [1]],
    [[1], [3]],
    [
      [2, 3],
      [2, 3],
    ],
    [
      [2, 3],
      [1, 1],
    ],
    [
      [2, 3],
      [2, 1],
    ],
    [
      [2, 1],
      [1, 3],
    ],
    [
      [2, 3],
      [1, 3],
    ],
    [
      [2, 2, 3],
      [2, 2, 3],
    ],
  ])('batches %j against %j', async (a, b) => {
    const inputs = { a: floats([...a, 5, 6]), b: floats([...b, 6, 4], 2) };
    await expectParity(kernelOp(BatchMatMul) as never, inputs, { transposeA: false, transposeB: false }, tolerance);
  });

  // Kernels take the largest tiles for large products only, which the references here take minutes for.
  test.each([
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ])('the largest tiles, transposed %s and %s', async (transposeA, transposeB) => {
    const [rows, terms, columns] = [130, 37, 259];
    const tiles = { rowsEach: 8, columnsEach: 8, depth: 16 } as const;
    const [a, b] = [floats(transposeA ? [terms, rows] : [rows, terms]), floats(transposeB ? [columns, terms] : [terms, columns], 2)];
    const gpu = backend() as WebGPUBackend;
    const upload = ({ shape, values }: Host): TensorInfo => gpu.makeTensorInfo([...shape], 'float32', values as Float32Array);
    const inputs = { a: upload(a), b: upload(b) };
    const { y } = dispatch(gpu, matMulProgram({ transposeA, transposeB, tiles }), {
      inputs,
      outputs: { y: { shape: [rows, columns] } },
      uniforms: { rows, columns, terms, inner: 1, aOuter: 0, aInner: 0, bOuter: 0, bInner: 0 },
      groups: [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles)), 1],
    });
    const given = (await gpu.read(y.dataId)) as Float32Array;
    const at = (host: Host, line: number, term: number, across: boolean): number =>
      host.values[across ? term * host.shape[1]! + line : line * terms + term]!;
    let worst = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        let sum = 0;
        for (let k = 0; k < terms; k++) sum += at(a, row, k, transposeA) * at(b, column, k, !transposeB);
        worst = Math.max(worst, Math.abs(given[row * columns + column]! - sum));
      }
    }
    expect(worst).toBeLessThan(tolerance);
    for (const { dataId } of [y, ...Object.values(inputs)]) gpu.disposeData(dataId);
  });

  test('a sum over nothing is zero', async () => {
    const inputs = { a: floats([3, 0]), b: floats([0, 2]) };
    const [y] = await expectParity(kernelOp(BatchMatMul) as never, inputs, { transposeA: false, transposeB: false });
    expect([...y!.values]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  const packedCases = packedFormats.flatMap((format) => widthsOf(format).map((width) => [format, width] as const));

  test.each(packedCases)('packed product of %s rows of %i, both ways and row by row', async (format, width) => {
    const { shape, parts } = packedFixture(format, 65, width);
    await expectParity(packedMatMulOp as never, { x: floats([65, width]), ...parts }, { ...shape, transposed: false }, tolerance);
    await expectParity(packedMatMulOp as never, { x: floats([65, 65]), ...parts }, { ...shape, transposed: true }, tolerance);
    await expectParity(packedMatMulOp as never, { x: floats([3, width]), ...parts }, { ...shape, transposed: false }, tolerance);
  });

  const affineCases = [
    ['affine', 2, 192],
    ['affine', 3, 65],
    ['affine', 4, 192],
    ['affine', 8, 192],
    ['affine-symmetric', 3, 192],
  ] as const;

  test.each(affineCases)('packed product of %s codes of %i bits in rows of %i, both ways and row by row', async (format, bits, width) => {
    const { shape, parts } = packedFixture(format, 65, width, 64, bits);
    // s·q - s·z, where the reference has s·(q - z): two roundings of up to 255 scales an entry.
    const open = tolerance * 2 ** Math.max(0, bits - 2);
    await expectParity(packedMatMulOp as never, { x: floats([65, width]), ...parts }, { ...shape, transposed: false }, open);
    await expectParity(packedMatMulOp as never, { x: floats([65, 65]), ...parts }, { ...shape, transposed: true }, open);
    await expectParity(packedMatMulOp as never, { x: floats([3, width]), ...parts }, { ...shape, transposed: false }, open);
    await expectParity(packedRowsOp as never, { ids: ints([7], (i) => (i * 13) % 65), ...parts }, shape, open);
  });

  test.each([
    [1, 1, 7],
    [7, 1, 64],
    [1, 65, 7],
    [4, 7, 64],
    [7, 7, 65],
    [20, 64, 7],
  ])('packed product of %i rows with a matrix of %i x %i meets every tile', async (rows, out, width) => {
    const { shape, parts } = packedFixture('codebook4', out, width);
    await expectParity(packedMatMulOp as never, { x: floats([rows, width]), ...parts }, { ...shape, transposed: false }, tolerance);
    await expectParity(packedMatMulOp as never, { x: floats([rows, out]), ...parts }, { ...shape, transposed: true }, tolerance);
  });

  test.each(packedCases)('rows of a packed %s matrix of width %i equal those decoded on the host', async (format, width) => {
    const { shape, parts } = packedFixture(format, 33, width);
    const ids = ints([7], (i) => (i * 13) % 33);
    // One rounding of scale · code + offset is left open.
    await expectParity(packedRowsOp as never, { ids, ...parts }, shape, 2e-7);
  });

  test('a segment sum keeps one order, and drops ids outside', async () => {
    const inputs: Record<string, Host> = { x: floats([65, 7]), segmentIds: ints([65], (i) => ((i * 7) % 12) - 1) };
    const [expected] = await expectParity(kernelOp(UnsortedSegmentSum) as never, inputs, { numSegments: 10 });
    expect(expected!.shape).toEqual([10, 7]);
    await init({ device: 'webgpu', software: true });
    const empty = tensor([], [0, 7]);
    const ids = tensor([], [0], 'int32');
    const sums = unsortedSegmentSum(empty, ids as never, 3);
    expect([...(await sums.data())]).toEqual(Array(21).fill(0));
    for (const t of [empty, ids, sums]) t.dispose();
  });
});
