/**
 * The tail of a low-rank adapter, base + s·(x·Aᵀ)·Bᵀ, and its gradients. One side of every product is the rank, too small
 * to pay for packing the tall operand: only the short one is packed, and the tall one is read where it lies.
 */
import { dropFactors, Dropout, DROP_EDGE } from './dropout';
import { least, madd } from './lanes';
import { FLOAT_DEPTH, packPanels, packTiles, ROW_BLOCK } from './packing';
import { multiplyBlock } from './gemm';

/** Rows that go through both products while they are in the cache; a task is a multiple of it. */
const ROWS: i32 = 64;
/** Columns that are packed at a time. */
const STRIP: i32 = 256;
/** Bytes of 4 rows of 8 columns, for the columns beyond the last whole panel. */
const EDGE: usize = 128;

/**
 * Four rows and eight columns of from + a·b, over depth k; `from` 0: nothing is added to. Rows are `ld` bytes apart, entries
 * of the depth `step` bytes.
 */
// @ts-ignore: decorator
@inline
function tile4(k: i32, a: usize, lda: usize, stepA: usize, b: usize, stepB: usize, from: usize, ldFrom: usize, to: usize, ldTo: usize): void {
  let a1 = a + lda;
  let a2 = a1 + lda;
  let a3 = a2 + lda;
  let c0 = f32x4.splat(0);
  let c1 = c0;
  let c2 = c0;
  let c3 = c0;
  let c4 = c0;
  let c5 = c0;
  let c6 = c0;
  let c7 = c0;
  if (from) {
    c0 = v128.load(from);
    c1 = v128.load(from, 16);
    c2 = v128.load(from + ldFrom);
    c3 = v128.load(from + ldFrom, 16);
    c4 = v128.load(from + 2 * ldFrom);
    c5 = v128.load(from + 2 * ldFrom, 16);
    c6 = v128.load(from + 3 * ldFrom);
    c7 = v128.load(from + 3 * ldFrom, 16);
  }
  for (; k > 0; k--) {
    const b0 = v128.load(b);
    const b1 = v128.load(b, 16);
    b += stepB;
    let v = v128.load32_splat(a);
    c0 = madd(v, b0, c0);
    c1 = madd(v, b1, c1);
    v = v128.load32_splat(a1);
    c2 = madd(v, b0, c2);
    c3 = madd(v, b1, c3);
    v = v128.load32_splat(a2);
    c4 = madd(v, b0, c4);
    c5 = madd(v, b1, c5);
    v = v128.load32_splat(a3);
    c6 = madd(v, b0, c6);
    c7 = madd(v, b1, c7);
    a += stepA;
    a1 += stepA;
    a2 += stepA;
    a3 += stepA;
  }
  v128.store(to, c0);
  v128.store(to, c1, 16);
  v128.store(to + ldTo, c2);
  v128.store(to + ldTo, c3, 16);
  v128.store(to + 2 * ldTo, c4);
  v128.store(to + 2 * ldTo, c5, 16);
  v128.store(to + 3 * ldTo, c6);
  v128.store(to + 3 * ldTo, c7, 16);
}

/** Four rows of a by one panel. */
function rows4(k: i32, a: usize, lda: usize, panel: usize, from: usize, ldFrom: usize, to: usize, ldTo: usize): void {
  tile4(k, a, lda, 4, panel, 32, from, ldFrom, to, ldTo);
}

/** One row of the same, in the same order. */
function rows1(k: i32, a: usize, panel: usize, from: usize, to: usize): void {
  let c0 = from ? v128.load(from) : f32x4.splat(0);
  let c1 = from ? v128.load(from, 16) : f32x4.splat(0);
  const bytes = (<usize>k) << 2;
  for (let i: usize = 0; i < bytes; i += 4) {
    const v = v128.load32_splat(a + i);
    c0 = madd(v, v128.load(panel), c0);
    c1 = madd(v, v128.load(panel, 16), c1);
    panel += 32;
  }
  v128.store(to, c0);
  v128.store(to, c1, 16);
}

/** to [rows, columns] = from + a [rows, k] · panels; rows are lda, ldTo entries apart, those of `from` as those of `to`. */
function multiplyPanels(rows: i32, columns: i32, k: i32, a: usize, lda: i32, panels: usize, from: usize, to: usize, ldTo: i32, edge: usize): void {
  const rowA = (<usize>lda) << 2;
  const rowTo = (<usize>ldTo) << 2;
  for (let n = 0; n < columns; n += 8) {
    const panel = panels + ((<usize>(n * k)) << 2);
    const width = (<usize>least(8, columns - n)) << 2;
    const column = (<usize>n) << 2;
    for (let m = 0; m < rows;) {
      const height = rows - m >= 4 ? 4 : 1;
      const source = a + m * rowA;
      const target = to + m * rowTo + column;
      const before = from ? from + m * rowTo + column : 0;
      if (width === 32) {
        if (height === 4) rows4(k, source, rowA, panel, before, rowTo, target, rowTo);
        else rows1(k, source, panel, before, target);
      } else {
        for (let r = 0; before && r < height; r++) memory.copy(edge + (r << 5), before + r * rowTo, width);
        const known = before ? edge : 0;
        if (height === 4) rows4(k, source, rowA, panel, known, 32, edge, 32);
        else rows1(k, source, panel, known, edge);
        for (let r = 0; r < height; r++) memory.copy(target + r * rowTo, edge + (r << 5), width);
      }
      m += height;
    }
  }
}

function scaled(from: usize, to: usize, size: i32, scale: f32): void {
  for (let i = 0; i < size; i++) store<f32>(to + ((<usize>i) << 2), load<f32>(from + ((<usize>i) << 2)) * scale);
}

/** Rows of which a task is a multiple. */
export function loraRows(): i32 {
  return ROWS;
}

/** Bytes of scratch of `lora` and `loraGrad`: the rows' inner product, and panels of a factor; with dropout the rows' factors, x under them and a strip of dx. */
export function loraBytes(rank: i32, width: i32, out: i32, drops: i32): i32 {
  const padded = (rank + 7) & ~7;
  const longest = width > out ? width : out;
  const plain = <i32>EDGE + 4 * (ROWS * rank + padded * longest + STRIP * rank);
  return drops ? plain + 2 * <i32>DROP_EDGE + 4 * ROWS * (2 * width + STRIP) : plain;
}

/** x under dropout, `count` entries from the `from`-th on; factors to `factors`, products to `out`. */
function drop(mask: usize, x: usize, from: i32, count: i32, factors: usize, out: usize): void {
  dropFactors(changetype<Dropout>(mask), from, count, factors);
  const bytes = (<usize>count) << 2;
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(out + i, f32x4.mul(v128.load(x + i), v128.load(factors + i)));
  for (; i < bytes; i += 4) store<f32>(out + i, load<f32>(x + i) * load<f32>(factors + i));
}

/** Rows of `strip`, STRIP entries apart, times their factors: to, or added to, rows `width` entries apart. */
function addDropped(rows: i32, columns: i32, strip: usize, factors: usize, to: usize, width: i32, accumulate: i32): void {
  const bytes = (<usize>columns) << 2;
  for (let m = 0; m < rows; m++) {
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) {
      const product = f32x4.mul(v128.load(strip + i), v128.load(factors + i));
      v128.store(to + i, accumulate ? f32x4.add(v128.load(to + i), product) : product);
    }
    for (; i < bytes; i += 4) {
      const product = load<f32>(strip + i) * load<f32>(factors + i);
      store<f32>(to + i, accumulate ? load<f32>(to + i) + product : product);
    }
    strip += STRIP * 4;
    factors += (<usize>width) << 2;
    to += (<usize>width) << 2;
  }
}

/**
 * Task t: rows [64·t, ...) of y = base + scale·inner·bᵀ and inner = x·aᵀ, for x [rows, width], a [rank, width], b [out, rank],
 * x under the dropout of `mask` (0: none). y may be base itself.
 */
export function lora(
  base: usize,
  x: usize,
  a: usize,
  b: usize,
  y: usize,
  inner: usize,
  rows: i32,
  width: i32,
  out: i32,
  rank: i32,
  scale: f32,
  mask: usize,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const narrow = scratch + EDGE;
  const panels = narrow + 4 * ROWS * rank;
  const strip = panels + 4 * ((rank + 7) & ~7) * (width > out ? width : out);
  const factors = strip + 4 * STRIP * rank + DROP_EDGE;
  const kept = factors + 4 * ROWS * width + DROP_EDGE;
  packPanels(a, width, 1, rank, width, panels);
  for (let task = first; task < last; task++) {
    const m = task * ROWS;
    const height = least(ROWS, rows - m);
    const own = inner + ((<usize>(m * rank)) << 2);
    let input = x + ((<usize>(m * width)) << 2);
    if (mask) {
      drop(mask, input, m * width, height * width, factors, kept);
      input = kept;
    }
    multiplyPanels(height, rank, width, input, width, panels, 0, own, rank, scratch);
    scaled(own, narrow, height * rank, scale);
    for (let n = 0; n < out; n += STRIP) {
      const columns = least(STRIP, out - n);
      packPanels(b + ((<usize>(n * rank)) << 2), rank, 1, columns, rank, strip);
      const at = (<usize>(m * out + n)) << 2;
      multiplyPanels(height, columns, rank, narrow, rank, strip, base + at, y + at, out, scratch);
    }
  }
}

/** Bytes of scratch of `packLoraRows`. */
export function packLoraBytes(rank: i32): i32 {
  return 256 + ROW_BLOCK * rank * 4;
}

/**
 * Task t: packs the t-th row block of A as `packRows` does, and after all of that the block's inner product, for a product
 * whose depth goes on over the rank: inner [rows, rank] = before·A·down, packed as after·inner. `down` comes as panels,
 * those of each pass together.
 */
export function packLoraRows(
  a: usize,
  lda: i32,
  rows: i32,
  k: i32,
  out: usize,
  down: usize,
  rank: i32,
  inner: usize,
  before: f32,
  after: f32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const narrow = scratch + 256;
  const padded = (rank + 7) & ~7;
  for (let task = first; task < last; task++) {
    const m = task * ROW_BLOCK;
    const height = least(ROW_BLOCK, rows - m);
    const own = inner + ((<usize>(m * rank)) << 2);
    for (let k0 = 0; k0 < k; k0 += FLOAT_DEPTH) {
      const depth = least(FLOAT_DEPTH, k - k0);
      const tiles = out + ((<usize>(rows * k0 + m * depth)) << 2);
      packTiles(a + ((<usize>(m * lda + k0)) << 2), lda, 0, height, depth, tiles);
      multiplyBlock(height, rank, depth, tiles, down + ((<usize>(padded * k0)) << 2), own, rank, k0 > 0 ? 1 : 0, scratch);
    }
    scaled(own, own, height * rank, before);
    scaled(own, narrow, height * rank, after);
    packTiles(narrow, rank, 0, height, rank, out + ((<usize>(rows * k + m * rank)) << 2));
  }
}

/** The one task: a factor's panels as `packLoraRows` reads them. */
export function packFactor(b: usize, ldb: i32, transposed: i32, rank: i32, k: i32, out: usize, first: i32, last: i32, scratch: usize): void {
  const padded = (rank + 7) & ~7;
  for (let k0 = 0; k0 < k; k0 += FLOAT_DEPTH) {
    const from = b + ((<usize>(transposed ? k0 : k0 * ldb)) << 2);
    packPanels(from, ldb, transposed, rank, least(FLOAT_DEPTH, k - k0), out + ((<usize>(padded * k0)) << 2));
  }
}

/** sums [rank, width] (+)= gᵀ·x for g [rows, rank], x [rows, width]: the rows' share in the gradient of a factor. */
function addOuter(rows: i32, rank: i32, width: i32, g: usize, x: usize, sums: usize, accumulate: i32): void {
  const rowG = (<usize>rank) << 2;
  const rowX = (<usize>width) << 2;
  for (let n = 0; n < width; n += 8) {
    const columns = least(8, width - n);
    const column = (<usize>n) << 2;
    let j = 0;
    if (columns === 8) {
      for (; j + 4 <= rank; j += 4) outer4(rows, g + ((<usize>j) << 2), rowG, x + column, rowX, sums + j * rowX + column, accumulate);
    }
    for (; j < rank; j++) {
      for (let i = 0; i < columns; i++) {
        const to = sums + j * rowX + column + ((<usize>i) << 2);
        let sum: f32 = accumulate ? load<f32>(to) : 0;
        for (let m = 0; m < rows; m++) sum += load<f32>(g + m * rowG + ((<usize>j) << 2)) * load<f32>(x + m * rowX + column + ((<usize>i) << 2));
        store<f32>(to, sum);
      }
    }
  }
}

/** Four columns of g by eight of x, over rows. */
function outer4(rows: i32, g: usize, rowG: usize, x: usize, rowX: usize, to: usize, accumulate: i32): void {
  tile4(rows, g, 4, rowG, x, rowX, accumulate ? to : 0, rowX, to, rowX);
}

/**
 * Task t: rows [taskRows·t, ...) of dx = dInner·a with dInner = scale·dy·b, added to what is there with `accumulate`, and
 * this task's share in the gradients of the factors, partial[t] = [dInnerᵀ·x [rank, width], innerᵀ·dy [rank, out]]. x and
 * dx are under the dropout of `mask` (0: none). Shares are by task and not by thread.
 */
export function loraGrad(
  dy: usize,
  x: usize,
  a: usize,
  b: usize,
  inner: usize,
  dx: usize,
  partial: usize,
  rows: i32,
  width: i32,
  out: i32,
  rank: i32,
  scale: f32,
  mask: usize,
  accumulate: i32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const narrow = scratch + EDGE;
  const panels = narrow + 4 * ROWS * rank;
  const strip = panels + 4 * ((rank + 7) & ~7) * (width > out ? width : out);
  const factors = strip + 4 * STRIP * rank + DROP_EDGE;
  const kept = factors + 4 * ROWS * width + DROP_EDGE;
  const wide = kept + 4 * ROWS * width;
  packPanels(b, rank, 0, rank, out, panels);
  for (let task = first; task < last; task++) {
    const share = partial + ((<usize>(task * rank * (width + out))) << 2);
    const start = task * taskRows;
    const end = least(rows, start + taskRows);
    for (let m = start; m < end; m += ROWS) {
      const height = least(ROWS, end - m);
      const slope = dy + ((<usize>(m * out)) << 2);
      let input = x + ((<usize>(m * width)) << 2);
      if (mask) {
        drop(mask, input, m * width, height * width, factors, kept);
        input = kept;
      }
      multiplyPanels(height, rank, out, slope, out, panels, 0, narrow, rank, scratch);
      scaled(narrow, narrow, height * rank, scale);
      addShare(height, rank, width, out, narrow, input, inner + ((<usize>(m * rank)) << 2), slope, share, m > start ? 1 : 0);
      for (let n = 0; n < width; n += STRIP) {
        const columns = least(STRIP, width - n);
        packPanels(a + ((<usize>n) << 2), width, 0, columns, rank, strip);
        const to = dx + ((<usize>(m * width + n)) << 2);
        if (mask) {
          multiplyPanels(height, columns, rank, narrow, rank, strip, 0, wide, STRIP, scratch);
          addDropped(height, columns, wide, factors + ((<usize>n) << 2), to, width, accumulate);
        } else multiplyPanels(height, columns, rank, narrow, rank, strip, accumulate ? to : 0, to, width, scratch);
      }
    }
  }
}

/** Task t: the same share in the gradients of the factors alone, dInner being there. */
export function loraShares(
  dy: usize,
  x: usize,
  inner: usize,
  dInner: usize,
  partial: usize,
  rows: i32,
  width: i32,
  out: i32,
  rank: i32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  for (let task = first; task < last; task++) {
    const share = partial + ((<usize>(task * rank * (width + out))) << 2);
    const end = least(rows, (task + 1) * taskRows);
    for (let m = task * taskRows; m < end; m += ROWS) {
      const at = (<usize>(m * rank)) << 2;
      const slope = dy + ((<usize>(m * out)) << 2);
      addShare(least(ROWS, end - m), rank, width, out, dInner + at, x + ((<usize>(m * width)) << 2), inner + at, slope, share, m > task * taskRows ? 1 : 0);
    }
  }
}

/** [dInnerᵀ·x, innerᵀ·dy] of some rows: to, or added to, a share. */
function addShare(rows: i32, rank: i32, width: i32, out: i32, dInner: usize, x: usize, inner: usize, dy: usize, share: usize, accumulate: i32): void {
  addOuter(rows, rank, width, dInner, x, share, accumulate);
  addOuter(rows, rank, out, inner, dy, share + ((<usize>(rank * width)) << 2), accumulate);
}

/** Task t: 256 columns of the shares' sums, those of da [rank, width] first, then db [out, rank] turned and scaled. */
export function loraFactors(partial: usize, shares: i32, da: usize, db: usize, width: i32, out: i32, rank: i32, scale: f32, first: i32, last: i32, scratch: usize): void {
  const stride = (<usize>(rank * (width + out))) << 2;
  const across = (width + STRIP - 1) / STRIP;
  for (let task = first; task < last; task++) {
    const second = task >= across;
    const side = second ? out : width;
    const n = (second ? task - across : task) * STRIP;
    const columns = least(STRIP, side - n);
    const from = partial + (second ? (<usize>(rank * width)) << 2 : 0) + ((<usize>n) << 2);
    for (let j = 0; j < rank; j++) {
      const row = from + ((<usize>(j * side)) << 2);
      const toA = da + ((<usize>(j * width + n)) << 2);
      const toB = db + ((<usize>(n * rank + j)) << 2);
      let i = 0;
      for (; i + 4 <= columns; i += 4) {
        const at = row + ((<usize>i) << 2);
        let sums = v128.load(at);
        for (let share = 1; share < shares; share++) sums = f32x4.add(sums, v128.load(at + share * stride));
        if (second) storeTurned(f32x4.mul(sums, f32x4.splat(scale)), toB + ((<usize>(i * rank)) << 2), (<usize>rank) << 2);
        else v128.store(toA + ((<usize>i) << 2), sums);
      }
      for (; i < columns; i++) {
        const at = row + ((<usize>i) << 2);
        let sum = load<f32>(at);
        for (let share = 1; share < shares; share++) sum += load<f32>(at + share * stride);
        if (second) store<f32>(toB + ((<usize>(i * rank)) << 2), sum * scale);
        else store<f32>(toA + ((<usize>i) << 2), sum);
      }
    }
  }
}

/** Four neighbors of a row to one column, whose entries are `stride` bytes apart. */
// @ts-ignore: decorator
@inline
function storeTurned(lanes: v128, to: usize, stride: usize): void {
  v128.store32_lane(to, lanes, 0);
  v128.store32_lane(to + stride, lanes, 1);
  v128.store32_lane(to + 2 * stride, lanes, 2);
  v128.store32_lane(to + 3 * stride, lanes, 3);
}
