/**
 * Products with at most four rows: they are bound by reading B, so B is read once, in its own order, and never packed.
 */
import { least } from './lanes';
import { stream1, stream2, stream3, stream4, dots1, dots2, dots3, dots4 } from './micro-kernels';

/** Columns that one stream kernel of this many rows covers. */
// @ts-ignore: decorator
@inline
function streamColumns(rows: i32): i32 {
  return rows === 1 ? 32 : rows === 2 ? 16 : rows === 3 ? 12 : 8;
}

function streamEdge(rows: i32, columns: i32, k: i32, a: usize, b: usize, ldb: i32, c: usize, ldc: i32): void {
  for (let m = 0; m < rows; m++) {
    for (let n = 0; n < columns; n++) {
      let sum: f32 = 0;
      for (let i = 0; i < k; i++) sum += load<f32>(a + ((<usize>(m * k + i)) << 2)) * load<f32>(b + ((<usize>(i * ldb + n)) << 2));
      store<f32>(c + ((<usize>(m * ldc + n)) << 2), sum);
    }
  }
}

/** Task t: `taskColumns` columns of c [rows <= 4, columns] = a [rows, k] · b [k, columns]. */
export function multiplyRows(a: usize, b: usize, ldb: i32, c: usize, rows: i32, columns: i32, k: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const width = streamColumns(rows);
  for (let task = first; task < last; task++) {
    let n = task * taskColumns;
    const end = least(columns, n + taskColumns);
    for (; n + width <= end; n += width) {
      const at = b + ((<usize>n) << 2);
      const out = c + ((<usize>n) << 2);
      if (rows === 1) stream1(k, a, at, ldb, out, columns);
      else if (rows === 2) stream2(k, a, at, ldb, out, columns);
      else if (rows === 3) stream3(k, a, at, ldb, out, columns);
      else stream4(k, a, at, ldb, out, columns);
    }
    if (n < end) streamEdge(rows, end - n, k, a, b + ((<usize>n) << 2), ldb, c + ((<usize>n) << 2), columns);
  }
}

/** Task t: `taskColumns` columns of c [rows <= 4, columns] = a [rows, k] · bᵀ for b [columns, k]. */
export function multiplyRowsTransposed(a: usize, b: usize, ldb: i32, c: usize, rows: i32, columns: i32, k: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  for (let task = first; task < last; task++) {
    const start = task * taskColumns;
    const end = least(columns, start + taskColumns);
    for (let n = start; n < end; n += 2) {
      // The last odd column is computed twice: its twin is itself.
      const at = b + ((<usize>(n * ldb)) << 2);
      const next = n + 1 < end ? at + ((<usize>ldb) << 2) : at;
      const out = c + ((<usize>n) << 2);
      const step: usize = n + 1 < end ? 4 : 0;
      if (rows === 1) dots1(k, a, at, next, out, step, columns);
      else if (rows === 2) dots2(k, a, at, next, out, step, columns);
      else if (rows === 3) dots3(k, a, at, next, out, step, columns);
      else dots4(k, a, at, next, out, step, columns);
    }
  }
}
