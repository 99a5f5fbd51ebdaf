/**
 * Operands of a product are copied into the order in which the micro-kernels read them: A as tiles [k][tile rows], B as
 * panels [k][8 columns]. Transposition happens here and only here, so that all four cases of a product cost the same.
 */
import { RELAXED } from './variant';
import { least } from './lanes';

/** Depth of one pass over k: a tile of A and a panel of B of this depth stay in the first cache. Whole blocks of every packed format. */
export const DEPTH: i32 = 256;
/** The same where both sides are floats in memory: deeper passes read and write the result less often. */
export const FLOAT_DEPTH: i32 = 384;
/** Columns of one pass over B. */
export const COLUMNS: i32 = 256;
/** Rows are tiled inside blocks of this many, whoever computes them, so that a tile never crosses two tasks. */
export const ROW_BLOCK: i32 = RELAXED ? 48 : 40;

/** Rows of the next tile when `left` remain in the block: no tile is left with one or two rows where that can be avoided. */
// @ts-ignore: decorator
@inline
export function tileHeight(left: i32): i32 {
  if (RELAXED) {
    if (left <= 6) return left;
    if (left <= 8) return 4;
    return left <= 10 ? 5 : 6;
  }
  if (left <= 5) return left;
  if (left === 6) return 3;
  return left <= 8 ? 4 : 5;
}

/** Transposes 4 rows of 4 floats into 4 rows that are `stride` bytes apart. */
// @ts-ignore: decorator
@inline
export function transpose4(row0: usize, row1: usize, row2: usize, row3: usize, out: usize, stride: usize): void {
  const a = v128.load(row0);
  const b = v128.load(row1);
  const c = v128.load(row2);
  const d = v128.load(row3);
  const ab0 = v128.shuffle<i32>(a, b, 0, 4, 1, 5);
  const ab1 = v128.shuffle<i32>(a, b, 2, 6, 3, 7);
  const cd0 = v128.shuffle<i32>(c, d, 0, 4, 1, 5);
  const cd1 = v128.shuffle<i32>(c, d, 2, 6, 3, 7);
  v128.store(out, v128.shuffle<i64>(ab0, cd0, 0, 2));
  v128.store(out + stride, v128.shuffle<i64>(ab0, cd0, 1, 3));
  v128.store(out + 2 * stride, v128.shuffle<i64>(ab1, cd1, 0, 2));
  v128.store(out + 3 * stride, v128.shuffle<i64>(ab1, cd1, 1, 3));
}

/** One tile of A: rows [0, height) and depth k of a matrix at `a` (or of its transpose) into out[k][height]. */
function packTile(a: usize, lda: i32, transposed: i32, height: i32, k: i32, out: usize): void {
  const row = (<usize>lda) << 2;
  const step = (<usize>height) << 2;
  if (transposed) {
    // A row of the tile is 1 to 6 neighbors: four, and then two, and then one of them.
    const two: usize = height & 4 ? 16 : 0;
    const one: usize = two + (height & 2 ? 8 : 0);
    for (let i = 0; i < k; i++) {
      if (height & 4) v128.store(out, v128.load(a));
      if (height & 2) store<u64>(out + two, load<u64>(a + two));
      if (height & 1) store<f32>(out + one, load<f32>(a + one));
      out += step;
      a += row;
    }
    return;
  }
  let m = 0;
  for (; m + 4 <= height; m += 4) {
    let source = a + m * row;
    let target = out + (m << 2);
    let i = 0;
    for (; i + 4 <= k; i += 4) {
      transpose4(source, source + row, source + 2 * row, source + 3 * row, target, step);
      source += 16;
      target += step << 2;
    }
    for (; i < k; i++) {
      for (let r = 0; r < 4; r++) store<f32>(target + (r << 2), load<f32>(source + r * row));
      source += 4;
      target += step;
    }
  }
  for (; m < height; m++) {
    let source = a + m * row;
    let target = out + (m << 2);
    for (let i = 0; i < k; i++) {
      store<f32>(target, load<f32>(source));
      source += 4;
      target += step;
    }
  }
}

/** Tiles of the rows [0, rows), `rows` within one or more row blocks, depth [0, k). */
export function packTiles(a: usize, lda: i32, transposed: i32, rows: i32, k: i32, out: usize): void {
  const row: usize = transposed ? 4 : (<usize>lda) << 2;
  for (let start = 0; start < rows; start += ROW_BLOCK) {
    const end = least(rows, start + ROW_BLOCK);
    for (let m = start; m < end;) {
      const height = tileHeight(end - m);
      packTile(a + m * row, lda, transposed, height, k, out + ((<usize>(m * k)) << 2));
      m += height;
    }
  }
}

/** One panel of B: depth k of `columns` <= 8 columns of a matrix at `b` (or of its transpose) into out[k][8], zeros beyond. */
function packPanel(b: usize, ldb: i32, transposed: i32, columns: i32, k: i32, out: usize): void {
  const row = (<usize>ldb) << 2;
  if (!transposed) {
    if (columns === 8) {
      for (let i = 0; i < k; i++) {
        v128.store(out, v128.load(b));
        v128.store(out, v128.load(b, 16), 16);
        out += 32;
        b += row;
      }
      return;
    }
    for (let i = 0; i < k; i++) {
      for (let n = 0; n < 8; n++) store<f32>(out + (n << 2), n < columns ? load<f32>(b + (n << 2)) : 0);
      out += 32;
      b += row;
    }
    return;
  }
  let i = 0;
  if (columns === 8) {
    for (; i + 4 <= k; i += 4) {
      transpose4(b, b + row, b + 2 * row, b + 3 * row, out, 32);
      transpose4(b + 4 * row, b + 5 * row, b + 6 * row, b + 7 * row, out + 16, 32);
      b += 16;
      out += 128;
    }
  }
  for (; i < k; i++) {
    for (let n = 0; n < 8; n++) store<f32>(out + (n << 2), n < columns ? load<f32>(b + n * row) : 0);
    b += 4;
    out += 32;
  }
}

/** Panels of `columns` columns, depth k: out[panel][k][8]. */
export function packPanels(b: usize, ldb: i32, transposed: i32, columns: i32, k: i32, out: usize): void {
  const column: usize = transposed ? (<usize>ldb) << 2 : 4;
  for (let n = 0; n < columns; n += 8) packPanel(b + n * column, ldb, transposed, least(8, columns - n), k, out + ((<usize>(n * k)) << 2));
}
