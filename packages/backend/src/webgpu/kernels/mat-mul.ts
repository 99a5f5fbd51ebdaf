import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { BatchMatMul, getKernel, type TensorInfo } from '@tensorflow/tfjs-core';
import { ShapeError } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import type { Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { matMulProgram } from './mat-mul.wgsl.ts';
import { dotColumns, matVecProgram, mostVectorRows, vectorColumns } from './mat-vec.wgsl.ts';
import { tileColumns, tileRows, tilesFor } from './tiles.wgsl.ts';

/**
 * tfjs's own product splits long sums over workgroups that add to one result in no fixed order: a block that is computed
 * again would not get the same bits. This one has one order, and takes all four transpositions without a copy.
 */
export const matMulKernel: Kernel = {
  kernelName: BatchMatMul,
  kernelFunc: (call) => {
    const { a, b } = call.inputs as { a: TensorInfo; b: TensorInfo };
    if (a.dtype !== 'float32' || b.dtype !== 'float32') return getKernel(BatchMatMul, 'webgpu').kernelFunc(call);
    const { transposeA, transposeB } = call.attrs as unknown as { transposeA: boolean; transposeB: boolean };
    const [aRows, aColumns] = a.shape.slice(-2) as [number, number];
    const [bRows, bColumns] = b.shape.slice(-2) as [number, number];
    const [rows, terms] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
    const columns = transposeB ? bRows : bColumns;
    const batches = batchSteps(a.shape.slice(0, -2), b.shape.slice(0, -2));
    const [aSize, bSize] = [rows * terms, terms * columns];
    const uniforms = {
      rows,
      columns,
      terms,
      inner: batches.inner,
      aOuter: batches.a[0] * aSize,
      aInner: batches.a[1] * aSize,
      bOuter: batches.b[0] * bSize,
      bInner: batches.b[1] * bSize,
    };
    const run = { inputs: { a, b }, outputs: { y: { shape: [...batches.shape, rows, columns] } }, uniforms };
    const backend = call.backend as WebGPUBackend;
    if (rows <= mostVectorRows) {
      const [x, y] = fold(columns, transposeB ? dotColumns : vectorColumns);
      return dispatch(backend, matVecProgram({ rows, transposeA, transposeB, quads: terms % 4 === 0 }), {
        ...run,
        groups: [x, y, batches.count],
      }).y;
    }
    const tiles = tilesFor(rows, columns);
    const groups = [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles)), batches.count] as const;
    return dispatch(backend, matMulProgram({ transposeA, transposeB, tiles }), { ...run, groups }).y;
  },
};

interface BatchSteps {
  readonly shape: readonly number[];
  readonly count: number;
  readonly inner: number;
  /** Matrices to step over, per outer and per inner batch. */
  readonly a: readonly [number, number];
  readonly b: readonly [number, number];
}

/** Leading sides as two: equal ones, or ones that only one operand has, fold into one; two that cross stay apart. */
function batchSteps(a: readonly number[], b: readonly number[]): BatchSteps {
  const rank = Math.max(a.length, b.length);
  const pad = (shape: readonly number[]): number[] => [...Array<number>(rank - shape.length).fill(1), ...shape];
  const [left, right] = [pad(a), pad(b)];
  const shape = left.map((side, axis) => Math.max(side, right[axis]!) * Math.min(side, right[axis]!, 1));
  const folded: { size: number; a: number; b: number }[] = [];
  left.forEach((side, axis) => {
    const other = right[axis]!;
    if (side !== other && side !== 1 && other !== 1) throw new ShapeError(`matMul: batches [${a}] and [${b}] do not broadcast`, { a, b });
    const last = folded.at(-1);
    const next = { size: shape[axis]!, a: side, b: other };
    if (next.size === 1) return;
    const alike = last !== undefined && (last.a === 1) === (next.a === 1) && (last.b === 1) === (next.b === 1);
    if (alike) Object.assign(last, { size: last.size * next.size, a: last.a * next.a, b: last.b * next.b });
    else folded.push(next);
  });
  if (folded.length > 2)
    throw new ShapeError(`matMul: batches [${a}] and [${b}] cross in more than two groups`, {
      a,
      b,
      help: 'Reshape to two leading sides.',
    });
  while (folded.length < 2) folded.unshift({ size: 1, a: 1, b: 1 });
  const [outer, inner] = folded as [(typeof folded)[0], (typeof folded)[0]];
  const step = (o: number, i: number): [number, number] => [o === 1 ? 0 : i, i === 1 ? 0 : 1];
  return { shape, count: outer.size * inner.size, inner: inner.size, a: step(outer.a, inner.a), b: step(outer.b, inner.b) };
}
