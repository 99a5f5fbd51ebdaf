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
  if (!accumulate && rows <= 4 && (rows === 1 || (!a.transposed && a.stride === depth))) {
    const kernel = b.transposed ? 'multiplyRowsTransposed' : 'multiplyRows';
    const taskColumns = b.transposed ? 64 : device.threads === 1 ? 4096 : 512;
    device.run(kernel, [a.at, b.at, b.stride, c, rows, columns, depth, taskColumns], { tasks: Math.ceil(columns / taskColumns), work });
    return;
  }
  forPackedRows(device, a, { rows, depth }, ({ tiles, start, height }) => {
    const { taskRows, taskColumns } = divide(device, height, columns);
    device.run(
      'multiplyPacked',
      [
        tiles,
        b.at,
        b.stride,
        flag(b.transposed),
        c + start * columns * 4,
        columns,
        height,
        columns,
        depth,
        taskRows,
        taskColumns,
        flag(accumulate),
      ],
      {
        tasks: Math.ceil(height / taskRows) * Math.ceil(columns / taskColumns),
        work: height * columns * depth,
        scratchBytes: device.kernels['panelBytes']!(taskColumns),
      },
    );
  });
}

/** Some rows of A, packed. */
export interface PackedRows {
  readonly tiles: number;
  readonly start: number;
  readonly height: number;
}

/** Packs A for all threads, as many rows at a time as there is scratch for. `reserve` bytes of the shared scratch are left free before the tiles. */
export function forPackedRows(
  device: WasmDevice,
  a: Matrix,
  { rows, depth, reserve = 0 }: { rows: number; depth: number; reserve?: number },
  use: (packed: PackedRows) => void,
): void {
  const most = Math.max(leastRows, Math.min(mostRows, Math.floor(packedBytes / (depth * 4 * leastRows)) * leastRows));
  const tiles = device.shared(reserve + Math.min(rows, most) * depth * 4) + reserve;
  for (let start = 0; start < rows; start += most) {
    const height = Math.min(most, rows - start);
    const source = a.at + start * 4 * (a.transposed ? 1 : a.stride);
    device.run('packRows', [source, a.stride, flag(a.transposed), height, depth, tiles], {
      tasks: Math.ceil(height / rowBlock(device)),
      work: height * depth * 4,
    });
    use({ tiles, start, height });
  }
}

const rowBlock = ({ relaxed }: WasmDevice): number => (relaxed ? 48 : 40);

/**
 * Tasks of a product: by columns, as B is then packed once; by rows too when the columns are too few for all threads.
 * @param columnStep what the columns of a task are a multiple of
 */
export function divide(device: WasmDevice, rows: number, columns: number, columnStep = 8): { taskRows: number; taskColumns: number } {
  const { threads } = device;
  if (threads === 1) return { taskRows: rows, taskColumns: Math.min(256, ceilTo(columns, columnStep)) };
  const tasks = threads * 4;
  const taskColumns = Math.min(256, ceilTo(Math.max(64, columns / tasks), columnStep), ceilTo(columns, columnStep));
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
