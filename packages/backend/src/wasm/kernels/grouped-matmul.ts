import { checkRuns, groupedMatMulGradOp, groupedMatMulOp, packedGroupedMatMulOp, type PackedShape } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';
import { blockOf, formatNumbers, hasOneRow, multiplyOneRow, tableBytes, writeTable, type Parts } from './packed-matmul.ts';

/** Products of a stack of matrices, one for each run of rows. A run costs what its rows cost: no matrix is copied, none without rows is read. */
export const groupedKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo; w: TensorInfo; runs: TensorInfo }, { transposed: boolean }>(
    device,
    groupedMatMulOp.kernelName,
    ({ x, w, runs }, { transposed }) => [multiply(device, x, w, runs, transposed)],
  ),
  wasmKernel<{ dy: TensorInfo; x: TensorInfo; runs: TensorInfo }, object>(device, groupedMatMulGradOp.kernelName, ({ dy, x, runs }) => [
    gradient(device, dy, x, runs),
  ]),
  wasmKernel<Parts & { readonly x: TensorInfo; readonly runs: TensorInfo }, PackedShape & { transposed: boolean }>(
    device,
    packedGroupedMatMulOp.kernelName,
    ({ x, runs, ...parts }, { transposed, ...shape }) => [multiplyPacked(device, x, runs, parts, shape, transposed)],
  ),
];

/** Rows of a task: whole row blocks of both builds. Not by the number of threads: products of four rows or fewer sum in another order. */
const taskRows = 240;

/** Some rows of one run. */
interface Piece {
  readonly matrix: number;
  readonly from: number;
  readonly rows: number;
}

interface Cut {
  readonly pieces: readonly Piece[];
  /** Rows that are in no run. */
  readonly outside: readonly (readonly [from: number, to: number])[];
}

function cut(device: WasmDevice, runs: TensorInfo, rows: number): Cut {
  // A copy: the heap may move while tensors are made.
  const ends = device.ints(runs).slice();
  checkRuns(ends, rows);
  const pieces: Piece[] = [];
  for (let matrix = 0; matrix + 1 < ends.length; matrix++) {
    const end = ends[matrix + 1]!;
    for (let from = ends[matrix]!; from < end; from += taskRows) pieces.push({ matrix, from, rows: Math.min(taskRows, end - from) });
  }
  return { pieces, outside: [[0, ends[0]!] as const, [ends[ends.length - 1]!, rows] as const] };
}

/** A new y [rows, columns] with zeros where no run is. */
function output(device: WasmDevice, rows: number, columns: number, { outside }: Cut): { y: TensorInfo; at: number } {
  const y = device.output([rows, columns]);
  const at = device.address(y);
  for (const [from, to] of outside) device.words(at + from * columns * 4, (to - from) * columns).fill(0);
  return { y, at };
}

/** Columns of a task: no more than the panels that a thread packs, and fewer where that leaves threads without work. */
function columnsOfTask({ threads }: WasmDevice, columns: number, pieces: number, step = 8): number {
  const wanted = threads === 1 ? columns : Math.max(64, (columns * pieces) / (4 * threads));
  return Math.min(256, Math.ceil(Math.min(wanted, columns) / step) * step);
}

/** Words of a table of tasks: every piece by every block of columns, a piece's blocks after one another. */
function tasksOf(pieces: readonly Piece[], blocks: number, words: (piece: Piece, block: number) => readonly number[]): number[] {
  return pieces.flatMap((piece) => Array.from({ length: blocks }, (_, block) => words(piece, block)).flat());
}

const work = (pieces: readonly Piece[], columns: number, depth: number): number =>
  pieces.reduce((sum, { rows }) => sum + rows, 0) * columns * depth;

function multiply(device: WasmDevice, x: TensorInfo, w: TensorInfo, runs: TensorInfo, transposed: boolean): TensorInfo {
  const [, out, width] = w.shape as [number, number, number];
  const [rows, depth] = x.shape as [number, number];
  const columns = transposed ? width : out;
  const divided = cut(device, runs, rows);
  const { pieces } = divided;
  const { y, at } = output(device, rows, columns, divided);
  const taskColumns = columnsOfTask(device, columns, pieces.length);
  const blocks = Math.ceil(columns / taskColumns);
  const [atX, atW] = [device.address(x), device.address(w)];
  const words = tasksOf(pieces, blocks, ({ matrix, from, rows: count }, block) => [
    atX + from * depth * 4,
    atW + matrix * out * width * 4,
    at + from * columns * 4,
    count,
    depth,
    block,
  ]);
  runTable(
    device,
    words,
    [depth, 0, width, transposed ? 0 : 1, columns, taskColumns],
    pieces.length * blocks,
    work(pieces, columns, depth),
  );
  return y;
}

/** dyᵀ·x of each run, in pieces of the rows of the result: the depth is the run's. */
function gradient(device: WasmDevice, dy: TensorInfo, x: TensorInfo, runs: TensorInfo): TensorInfo {
  const [rows, out] = dy.shape as [number, number];
  const columns = x.shape[1]!;
  const ends = device.ints(runs).slice();
  checkRuns(ends, rows);
  const count = ends.length - 1;
  const dw = device.output([count, out, columns]);
  const [atDy, atX, atDw] = [device.address(dy), device.address(x), device.address(dw)];
  const pieces: Piece[] = [];
  for (let matrix = 0; matrix < count; matrix++) {
    if (ends[matrix + 1] === ends[matrix]) device.words(atDw + matrix * out * columns * 4, out * columns).fill(0);
    else for (let from = 0; from < out; from += taskRows) pieces.push({ matrix, from, rows: Math.min(taskRows, out - from) });
  }
  const taskColumns = columnsOfTask(device, columns, pieces.length);
  const blocks = Math.ceil(columns / taskColumns);
  const words = tasksOf(pieces, blocks, ({ matrix, from, rows: height }, block) => [
    atDy + (ends[matrix]! * out + from) * 4,
    atX + ends[matrix]! * columns * 4,
    atDw + (matrix * out + from) * columns * 4,
    height,
    ends[matrix + 1]! - ends[matrix]!,
    block,
  ]);
  runTable(device, words, [out, 1, columns, 0, columns, taskColumns], pieces.length * blocks, rows * out * columns);
  return dw;
}

function runTable(device: WasmDevice, words: readonly number[], args: readonly number[], tasks: number, amount: number): void {
  const table = device.shared(words.length * 4);
  device.words(table, words.length).set(words);
  device.run('multiplyTable', [table, ...args], { tasks, work: amount, scratchBytes: device.kernels['wholeBytes']!() });
}

function multiplyPacked(
  device: WasmDevice,
  x: TensorInfo,
  runs: TensorInfo,
  parts: Parts,
  shape: PackedShape,
  transposed: boolean,
): TensorInfo {
  const [rows, depth] = x.shape as [number, number];
  const columns = transposed ? shape.in : shape.out;
  const count = runs.shape[0]! - 1;
  const divided = cut(device, runs, rows);
  const { y, at } = output(device, rows, columns, divided);
  const atX = device.address(x);
  const single = ({ rows: height }: Piece): boolean => height === 1 && !transposed && hasOneRow(device, shape);
  const pieces = divided.pieces.filter((piece) => !single(piece));
  for (const { matrix, from } of divided.pieces.filter(single)) {
    multiplyOneRow(device, atX + from * depth * 4, parts, shape, at + from * columns * 4, { index: matrix, count });
  }
  if (pieces.length === 0) return y;

  const taskColumns = columnsOfTask(device, columns, pieces.length, transposed ? Math.max(8, blockOf(shape)) : 8);
  const blocks = Math.ceil(columns / taskColumns);
  const matrices = [...new Set(pieces.map(({ matrix }) => matrix))];
  const tasks = pieces.length * blocks;
  const tables = device.shared(matrices.length * tableBytes + tasks * 20);
  matrices.forEach((index, i) => writeTable(device, parts, shape, { section: { index, count }, table: tables + i * tableBytes }));
  const tableOf = new Map(matrices.map((matrix, i) => [matrix, tables + i * tableBytes]));
  const words = tasksOf(pieces, blocks, ({ matrix, from, rows: height }, block) => [
    atX + from * depth * 4,
    tableOf.get(matrix)!,
    at + from * columns * 4,
    height,
    block,
  ]);
  const list = tables + matrices.length * tableBytes;
  device.words(list, words.length).set(words);
  const args = [list, formatNumbers.indexOf(shape.format), shape.in, transposed ? 1 : 0, columns, depth, taskRows, taskColumns];
  device.run('multiplyPackedTable', args, {
    tasks,
    // Decoding an element costs a few multiply-adds, whatever the rows.
    work: work(pieces, columns, depth) + 8 * pieces.length * columns * depth,
    scratchBytes: device.kernels['packedTableBytes']!(taskRows, taskColumns),
  });
  return y;
}
