import { ShapeError } from '@niwaki/tensor';
import type { WasmDevice } from './device.ts';

/** A matrix in the heap: its first byte, the entries from one row to the next, and whether it is read transposed. */
export interface Matrix {
  readonly at: number;
  readonly stride: number;
  readonly transposed: boolean;
}

export interface Product {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
}

const flag = (value: boolean): number => (value ? 1 : 0);
const ceilTo = (value: number, step: number): number => Math.ceil(value / step) * step;

/** Packed rows of A that are held at once: 16 MB, but never fewer rows than keep the packing of B cheap. */
const packedBytes = 16 << 20;
const [leastRows, mostRows] = [240, 1440];

/** Rows up to which a matrix is read where it lies: packing would cost more than it gains. */
export const fewRows = 4;

/** c [rows, columns] = a · b, or c + a · b, on all threads where it is worth it. c is dense. */
export function multiply(
  device: WasmDevice,
  a: Matrix,
  b: Matrix,
  c: number,
  { rows, columns, depth }: Product,
  { accumulate = false }: { accumulate?: boolean } = {},
): void {
  if (rows === 0 || columns === 0) return;
  const work = rows * columns * depth;
  if (depth === 0) {
    if (!accumulate) device.words(c, rows * columns).fill(0);
    return;
  }
  if (!accumulate && rows <= fewRows && (rows === 1 || (!a.transposed && a.stride === depth))) {
    const kernel = b.transposed ? 'multiplyRowsTransposed' : 'multiplyRows';
    const taskColumns = b.transposed ? 64 : device.threads === 1 ? 4096 : 512;
    device.run(kernel, [a.at, b.at, b.stride, c, rows, columns, depth, taskColumns], { tasks: Math.ceil(columns / taskColumns), work });
    return;
  }
  forPackedRows(device, a, { rows, depth }, (packed) => multiplyRows(device, packed, { b, c, columns, depth, accumulate }));
}

interface RowsProduct {
  readonly b: Matrix;
  readonly c: number;
  readonly columns: number;
  readonly depth: number;
  readonly accumulate?: boolean;
  /** What the depth goes on over. */
  readonly more?: { readonly depth: number; readonly b: Matrix };
}

/** Their rows of c. */
function multiplyRows(
  device: WasmDevice,
  { tiles, start, height }: PackedRows,
  { b, c, columns, depth, accumulate = false, more }: RowsProduct,
): void {
  const { taskRows, taskColumns } = divide(device, height, columns);
  const [at, sizes] = [c + start * columns * 4, [columns, height, columns, depth, taskRows, taskColumns]];
  const going = more === undefined ? [0, 0, 0, 0] : [more.depth, more.b.at, more.b.stride, flag(more.b.transposed)];
  device.run('multiplyPacked', [tiles, b.at, b.stride, flag(b.transposed), at, ...sizes, flag(accumulate), ...going], {
    tasks: Math.ceil(height / taskRows) * Math.ceil(columns / taskColumns),
    work: height * columns * (depth + (more?.depth ?? 0)),
    scratchBytes: device.kernels['panelBytes']!(taskColumns, more?.depth ?? 0),
  });
}

/** A pair of factors beside b. */
export interface LowRank {
  readonly rank: number;
  /** [depth, rank] */
  readonly down: Matrix;
  /** [rank, columns] */
  readonly up: Matrix;
  /** Where the inner product goes, before·a·down [rows, rank]. */
  readonly inner: number;
  readonly before: number;
  readonly after: number;
}

/**
 * c [rows, columns] = a·b + after·inner·up, one product whose depth goes on over the rank: c is in the cache when the factors
 * come, and a is packed once for both. a is dense. With `columns` 0 the inner product alone, of the same bits.
 */
export function multiplyWithLowRank(
  device: WasmDevice,
  a: number,
  b: Matrix,
  c: number,
  { rows, columns, depth }: Product,
  { rank, down, up, inner, before, after }: LowRank,
): void {
  const reserve = ceilTo(rank, 8) * depth * 4;
  forRows(rows, depth + rank, ({ start, height }) => {
    // The same place for every part: the first is the largest.
    const panels = device.shared(reserve + height * (depth + rank) * 4);
    const tiles = panels + reserve;
    if (start === 0) device.run('packFactor', [down.at, down.stride, flag(down.transposed), rank, depth, panels], { tasks: 1, work: 0 });
    const own = inner + start * rank * 4;
    device.run('packLoraRows', [a + start * depth * 4, depth, height, depth, tiles, panels, rank, own, before, after], {
      tasks: Math.ceil(height / rowBlock(device)),
      work: height * depth * (4 + rank),
      scratchBytes: device.kernels['packLoraBytes']!(rank),
    });
    if (columns > 0) multiplyRows(device, { tiles, start, height }, { b, c, columns, depth, more: { depth: rank, b: up } });
  });
}

/** Some rows of A, packed. */
export interface PackedRows {
  readonly tiles: number;
  readonly start: number;
  readonly height: number;
}

/** As many rows at a time as there is scratch for; the last part may be smaller. */
function forRows(rows: number, depth: number, use: (part: Pick<PackedRows, 'start' | 'height'>) => void): void {
  const most = Math.max(leastRows, Math.min(mostRows, Math.floor(packedBytes / (depth * 4 * leastRows)) * leastRows));
  for (let start = 0; start < rows; start += most) use({ start, height: Math.min(most, rows - start) });
}

export interface PackOptions {
  readonly rows: number;
  readonly depth: number;
  /** Bytes of the shared scratch that are left free before the tiles. */
  readonly reserve?: number;
  /** For a B that is decoded, whose passes over the depth are of another length. */
  readonly decoded?: boolean;
}

/** Packs A for all threads, as many rows at a time as there is scratch for. */
export function forPackedRows(
  device: WasmDevice,
  a: Matrix,
  { rows, depth, reserve = 0, decoded = false }: PackOptions,
  use: (packed: PackedRows) => void,
): void {
  const pass = device.kernels['passDepth']!(flag(decoded));
  forRows(rows, depth, ({ start, height }) => {
    const tiles = device.shared(reserve + height * depth * 4) + reserve;
    const source = a.at + start * 4 * (a.transposed ? 1 : a.stride);
    device.run('packRows', [source, a.stride, flag(a.transposed), height, depth, pass, tiles], {
      tasks: Math.ceil(height / rowBlock(device)),
      work: height * depth * 4,
    });
    use({ tiles, start, height });
  });
}

const rowBlock = ({ relaxed }: WasmDevice): number => (relaxed ? 48 : 40);

/**
 * Tasks of a product: by columns, as B is then packed once; by rows too when the columns are too few for all threads.
 * @param columnStep what the columns of a task are a multiple of
 */
export function divide(device: WasmDevice, rows: number, columns: number, columnStep = 8): { taskRows: number; taskColumns: number } {
  const { threads } = device;
  if (threads === 1) return { taskRows: rows, taskColumns: Math.min(256, ceilTo(columns, columnStep)) };
  // So many that threads of different speed end together, and not so narrow that tiles of A are read for nothing.
  const tasks = threads * 8;
  const taskColumns = Math.min(256, ceilTo(Math.max(32, columns / tasks), columnStep), ceilTo(columns, columnStep));
  const across = Math.ceil(columns / taskColumns);
  const block = rowBlock(device);
  const down = Math.max(1, Math.min(Math.ceil(tasks / across), Math.floor(rows / (2 * block))));
  return { taskRows: ceilTo(rows / down, block), taskColumns };
}

/** Addresses of the operands and the result of each product of a batch. */
export type BatchTable = readonly (readonly [a: number, b: number, c: number])[];

/** Many products of one size: each by one thread, or, where they are few and large, one after the other by all. */
export function multiplyBatch(device: WasmDevice, table: BatchTable, a: Omit<Matrix, 'at'>, b: Omit<Matrix, 'at'>, product: Product): void {
  const { rows, columns, depth } = product;
  const work = rows * columns * depth;
  const together = table.length >= 2 * device.threads || work < 4_000_000;
  if (table.length === 1 || !together || depth === 0) {
    for (const [atA, atB, atC] of table) multiply(device, { ...a, at: atA }, { ...b, at: atB }, atC, product);
    return;
  }
  if (work === 0) return;
  const addresses = device.shared(table.length * 12);
  device.words(addresses, table.length * 3).set(table.flat());
  device.run('multiplyBatch', [addresses, a.stride, flag(a.transposed), b.stride, flag(b.transposed), columns, rows, columns, depth], {
    tasks: table.length,
    work: work * table.length,
    scratchBytes: device.kernels['wholeBytes']!(),
  });
}

/** @throws ShapeError where the inner sides of a product differ */
export function checkDepths(a: readonly number[], b: readonly number[], depthA: number, depthB: number): void {
  if (depthA !== depthB) throw new ShapeError(`matMul: inner sides differ (${depthA} and ${depthB}) for [${a}] and [${b}]`, { a, b });
}
