/**
 * f32 products of all four transpositions, in tasks that any thread may take. The sum over k of an entry always runs in
 * the same order, so the number of threads never changes a bit of the result.
 */
import { COLUMNS, DEPTH, FLOAT_DEPTH, ROW_BLOCK, packPanels, packTiles, tileHeight } from './packing';
import { tile1, tile2, tile3, tile4, tile5, tile6 } from './micro-kernels';
import { least } from './lanes';

function tile(height: i32, k: usize, a: usize, b: usize, c: usize, ldc: usize, accumulate: i32): void {
  switch (height) {
    case 6:
      tile6(k, a, b, c, ldc, accumulate);
      break;
    case 5:
      tile5(k, a, b, c, ldc, accumulate);
      break;
    case 4:
      tile4(k, a, b, c, ldc, accumulate);
      break;
    case 3:
      tile3(k, a, b, c, ldc, accumulate);
      break;
    case 2:
      tile2(k, a, b, c, ldc, accumulate);
      break;
    default:
      tile1(k, a, b, c, ldc, accumulate);
  }
}

/** c [rows, columns] = (or +=) packed tiles · packed panels of depth k. `edge`: 6 · 8 floats for the columns beyond the last full panel. */
export function multiplyBlock(rows: i32, columns: i32, k: i32, tiles: usize, panels: usize, c: usize, ldc: i32, accumulate: i32, edge: usize): void {
  for (let start = 0; start < rows; start += ROW_BLOCK) {
    const end = least(rows, start + ROW_BLOCK);
    for (let m = start; m < end;) {
      const height = tileHeight(end - m);
      const a = tiles + ((<usize>(m * k)) << 2);
      for (let n = 0; n < columns; n += 8) {
        const b = panels + ((<usize>(n * k)) << 2);
        const out = c + ((<usize>(m * ldc + n)) << 2);
        if (n + 8 <= columns) tile(height, k, a, b, out, ldc, accumulate);
        else {
          tile(height, k, a, b, edge, 8, 0);
          copyEdge(height, columns - n, edge, out, ldc, accumulate);
        }
      }
      m += height;
    }
  }
}

function copyEdge(rows: i32, columns: i32, edge: usize, out: usize, ldc: i32, accumulate: i32): void {
  for (let i = 0; i < rows; i++) {
    for (let n = 0; n < columns; n++) {
      const at = out + ((<usize>(i * ldc + n)) << 2);
      const value = load<f32>(edge + ((<usize>(i * 8 + n)) << 2));
      store<f32>(at, accumulate ? load<f32>(at) + value : value);
    }
  }
}

/** Depth of the passes that `packRows` lays out: for a B of floats, or for one that is decoded. */
export function passDepth(decoded: i32): i32 {
  return decoded ? DEPTH : FLOAT_DEPTH;
}

/** Task t: packs the t-th row block of A for every pass over k, `pass` deep, out[pass][rows · depth]. */
export function packRows(a: usize, lda: i32, transposed: i32, rows: i32, k: i32, pass: i32, out: usize, first: i32, last: i32, scratch: usize): void {
  for (let task = first; task < last; task++) {
    const m = task * ROW_BLOCK;
    const height = least(ROW_BLOCK, rows - m);
    for (let k0 = 0; k0 < k; k0 += pass) {
      const depth = least(pass, k - k0);
      const source = a + ((<usize>(transposed ? k0 * lda + m : m * lda + k0)) << 2);
      packTiles(source, lda, transposed, height, depth, out + ((<usize>(rows * k0 + m * depth)) << 2));
    }
  }
}

/** Bytes of scratch that `multiplyPacked` needs for each thread. */
export function panelBytes(columns: i32, more: i32): i32 {
  return ((columns + 7) & ~7) * (more > FLOAT_DEPTH ? more : FLOAT_DEPTH) * 4 + 256;
}

/**
 * Task t: one block of c, `taskRows` (whole row blocks) by `taskColumns`, out of packed A and a B in memory; added to c where
 * `accumulate` is 1. The depth goes on over `more` rows of a second B, for which A's tiles lie after those of the first.
 */
export function multiplyPacked(
  tiles: usize,
  b: usize,
  ldb: i32,
  transposed: i32,
  c: usize,
  ldc: i32,
  rows: i32,
  columns: i32,
  k: i32,
  taskRows: i32,
  taskColumns: i32,
  accumulate: i32,
  more: i32,
  bMore: usize,
  ldMore: i32,
  transposedMore: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const across = (columns + taskColumns - 1) / taskColumns;
  const panels = scratch + 256;
  for (let task = first; task < last; task++) {
    const m = (task / across) * taskRows;
    const n = (task % across) * taskColumns;
    const height = least(taskRows, rows - m);
    const width = least(taskColumns, columns - n);
    const out = c + ((<usize>(m * ldc + n)) << 2);
    for (let k0 = 0; k0 < k; k0 += FLOAT_DEPTH) {
      const depth = least(FLOAT_DEPTH, k - k0);
      packPanels(b + ((<usize>(transposed ? n * ldb + k0 : k0 * ldb + n)) << 2), ldb, transposed, width, depth, panels);
      const a = tiles + ((<usize>(rows * k0 + m * depth)) << 2);
      multiplyBlock(height, width, depth, a, panels, out, ldc, k0 > 0 ? 1 : accumulate, scratch);
    }
    if (more > 0) {
      packPanels(bMore + ((<usize>(transposedMore ? n * ldMore : n)) << 2), ldMore, transposedMore, width, more, panels);
      multiplyBlock(height, width, more, tiles + ((<usize>(rows * k + m * more)) << 2), panels, out, ldc, 1, scratch);
    }
  }
}

/** Rows of A that one pass of `multiplyWhole` packs: the tiles of one pass stay in the second cache. */
const PASS_ROWS: i32 = 480;

/** Bytes of scratch of `multiplyWhole`. */
export function wholeBytes(): i32 {
  return 256 + (PASS_ROWS + COLUMNS) * FLOAT_DEPTH * 4;
}

/** A whole product by one thread, packing included: for small products, of which a batch has many. */
export function multiplyWhole(a: usize, lda: i32, transposedA: i32, b: usize, ldb: i32, transposedB: i32, c: usize, ldc: i32, rows: i32, columns: i32, k: i32, scratch: usize): void {
  const tiles = scratch + 256;
  const panels = tiles + PASS_ROWS * FLOAT_DEPTH * 4;
  for (let m = 0; m < rows; m += PASS_ROWS) {
    const height = least(PASS_ROWS, rows - m);
    for (let k0 = 0; k0 < k; k0 += FLOAT_DEPTH) {
      const depth = least(FLOAT_DEPTH, k - k0);
      packTiles(a + ((<usize>(transposedA ? k0 * lda + m : m * lda + k0)) << 2), lda, transposedA, height, depth, tiles);
      for (let n = 0; n < columns; n += COLUMNS) {
        const width = least(COLUMNS, columns - n);
        packPanels(b + ((<usize>(transposedB ? n * ldb + k0 : k0 * ldb + n)) << 2), ldb, transposedB, width, depth, panels);
        multiplyBlock(height, width, depth, tiles, panels, c + ((<usize>(m * ldc + n)) << 2), ldc, k0 > 0 ? 1 : 0, scratch);
      }
    }
  }
}

/** Task t: the t-th product of a batch; `table` holds the addresses [a, b, c] of each. */
export function multiplyBatch(table: usize, lda: i32, transposedA: i32, ldb: i32, transposedB: i32, ldc: i32, rows: i32, columns: i32, k: i32, first: i32, last: i32, scratch: usize): void {
  for (let task = first; task < last; task++) {
    const at = table + task * 12;
    multiplyWhole(load<u32>(at), lda, transposedA, load<u32>(at, 4), ldb, transposedB, load<u32>(at, 8), ldc, rows, columns, k, scratch);
  }
}
