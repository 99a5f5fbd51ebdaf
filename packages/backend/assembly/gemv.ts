/**
 * Products with at most four rows: they are bound by reading B, so B is read once, in its own order, and never packed.
 */
import { least } from './lanes';
import { dots1, dots2, dots3, dots4, spread1, spread2, spread3, spread4 } from './micro-kernels';

/** Task t: `taskColumns` columns of c [rows <= 4, columns] = a [rows, k] · b [k, columns]. */
export function multiplyRows(a: usize, b: usize, ldb: i32, c: usize, rows: i32, columns: i32, k: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  for (let task = first; task < last; task++) {
    const n = task * taskColumns;
    const width = least(taskColumns, columns - n);
    const from = b + ((<usize>n) << 2);
    const to = c + ((<usize>n) << 2);
    for (let m = 0; m < rows; m++) memory.fill(to + ((<usize>(m * columns)) << 2), 0, (<usize>width) << 2);
    addRows(rows, k, a, from, ldb, to, columns, width);
  }
}

/** c [rows <= 4, columns] += a [rows, k] · b [k, columns]; rows of b and c begin ldb and ldc entries apart. */
export function addRows(rows: i32, k: i32, a: usize, b: usize, ldb: i32, c: usize, ldc: i32, columns: i32): void {
  if (rows === 1) spread1(k, a, b, ldb, c, ldc, columns);
  else if (rows === 2) spread2(k, a, b, ldb, c, ldc, columns);
  else if (rows === 3) spread3(k, a, b, ldb, c, ldc, columns);
  else spread4(k, a, b, ldb, c, ldc, columns);
}

/** Task t: `taskColumns` (a multiple of 4) columns of c [rows <= 4, columns] = a [rows, k] · bᵀ for b [columns, k]. */
export function multiplyRowsTransposed(a: usize, b: usize, ldb: i32, c: usize, rows: i32, columns: i32, k: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const step = rows === 2 ? 4 : 2;
  const end = least(columns, last * taskColumns);
  for (let n = first * taskColumns; n < end; n += step) {
    const from = b + ((<usize>(n * ldb)) << 2);
    const to = c + ((<usize>n) << 2);
    const left = end - n - 1;
    if (rows === 1) dots1(k, a, from, ldb, left, to, columns);
    else if (rows === 2) dots2(k, a, from, ldb, left, to, columns);
    else if (rows === 3) dots3(k, a, from, ldb, left, to, columns);
    else dots4(k, a, from, ldb, left, to, columns);
  }
}
