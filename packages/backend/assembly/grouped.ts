/**
 * Products over runs of rows, each with a matrix of its own: a table of small products that any thread takes from. How the
 * runs are cut never depends on the number of threads where it would change the order of a sum.
 */
import { decodeAcross, decodeDown, multiplyFewRows, multiplyFewRowsTransposed, packedWeightBytes } from './packed-gemm';
import { multiplyBlock, multiplyWhole } from './gemm';
import { multiplyRows, multiplyRowsTransposed } from './gemv';
import { least } from './lanes';
import { DEPTH, packTiles } from './packing';

/** Bytes of one product of `multiplyTable`: the addresses a, b, c of its whole rows, its rows, its depth, and its block of columns. */
const DENSE: i32 = 24;

/** Task t: `taskColumns` columns of the t-th product of a table. Rows of a and b are `lda` and `ldb` entries apart; c is dense. */
export function multiplyTable(
  table: usize,
  lda: i32,
  transposedA: i32,
  ldb: i32,
  transposedB: i32,
  columns: i32,
  taskColumns: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  for (let task = first; task < last; task++) {
    const at = table + task * DENSE;
    const a = load<u32>(at);
    const b = load<u32>(at, 4);
    const c = load<u32>(at, 8);
    const rows = load<i32>(at, 12);
    const k = load<i32>(at, 16);
    const block = load<i32>(at, 20);
    if (rows <= 4 && !transposedA) {
      if (transposedB) multiplyRowsTransposed(a, b, ldb, c, rows, columns, k, taskColumns, block, block + 1, scratch);
      else multiplyRows(a, b, ldb, c, rows, columns, k, taskColumns, block, block + 1, scratch);
      continue;
    }
    const n = block * taskColumns;
    const from = b + ((<usize>(transposedB ? n * ldb : n)) << 2);
    multiplyWhole(a, lda, transposedA, from, ldb, transposedB, c + ((<usize>n) << 2), columns, rows, least(taskColumns, columns - n), k, scratch);
  }
}

/** Bytes of one product of `multiplyPackedTable`: the addresses of x, of the `Parts` of its matrix and of c, its rows and its block of columns. */
const PACKED: i32 = 20;

/** Bytes of scratch of `multiplyPackedTable` for each thread. */
export function packedTableBytes(taskRows: i32, taskColumns: i32): i32 {
  return packedWeightBytes(taskColumns) + taskRows * DEPTH * 4;
}

/** Task t: `taskColumns` columns of the t-th product of a table, x·Wᵀ or with `transposed` x·W; none has more than `taskRows` rows. */
export function multiplyPackedTable(
  table: usize,
  format: i32,
  width: i32,
  transposed: i32,
  columns: i32,
  k: i32,
  taskRows: i32,
  taskColumns: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const tiles = scratch + 256;
  const panels = tiles + ((<usize>(taskRows * DEPTH)) << 2);
  const run = panels + ((<usize>(((taskColumns + 7) & ~7) * DEPTH)) << 2);
  for (let task = first; task < last; task++) {
    const at = table + task * PACKED;
    const x = load<u32>(at);
    const parts = load<u32>(at, 4);
    const c = load<u32>(at, 8);
    const rows = load<i32>(at, 12);
    const block = load<i32>(at, 16);
    if (rows <= 4) {
      if (transposed) multiplyFewRowsTransposed(x, format, parts, width, c, rows, k, taskColumns, block, block + 1, scratch);
      else multiplyFewRows(x, format, parts, width, c, rows, columns, taskColumns, block, block + 1, scratch);
      continue;
    }
    const n = block * taskColumns;
    const span = least(taskColumns, columns - n);
    for (let k0 = 0; k0 < k; k0 += DEPTH) {
      const depth = least(DEPTH, k - k0);
      if (transposed) decodeAcross(format, parts, width, n, span, k0, depth, panels, run);
      else decodeDown(format, parts, width, n, span, k0, depth, panels, run);
      packTiles(x + ((<usize>k0) << 2), k, 0, rows, depth, tiles);
      multiplyBlock(rows, span, depth, tiles, panels, c + ((<usize>n) << 2), columns, k0 > 0 ? 1 : 0, scratch);
    }
  }
}
