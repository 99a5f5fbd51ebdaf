/**
 * Products with a packed matrix W (out, in): its rows are decoded as the panels of B are packed, a panel's worth at a
 * time, and meet the same micro-kernels as floats do.
 */
import { decode, Parts } from './dequant';
import { multiplyBlock } from './gemm';
import { laneSum, least, madd } from './lanes';
import { DEPTH, packPanels } from './packing';

/** Bytes of scratch of `multiplyPackedWeight` for each thread. */
export function packedWeightBytes(columns: i32): i32 {
  return 256 + (((columns + 7) & ~7) + 8) * DEPTH * 4 + 4 * (columns + 8);
}

/**
 * Task t: one block of c, `taskRows` (whole row blocks) by `taskColumns`, out of packed A and W: x·Wᵀ (columns = out,
 * k = in), or with `transposed` x·W (columns = in, k = out; taskColumns are then whole GGUF blocks).
 */
export function multiplyPackedWeight(
  tiles: usize,
  format: i32,
  parts: usize,
  width: i32,
  transposed: i32,
  c: usize,
  rows: i32,
  columns: i32,
  k: i32,
  taskRows: i32,
  taskColumns: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const across = (columns + taskColumns - 1) / taskColumns;
  const panels = scratch + 256;
  const run = panels + ((<usize>(((taskColumns + 7) & ~7) * DEPTH)) << 2);
  for (let task = first; task < last; task++) {
    const m = (task / across) * taskRows;
    const n = (task % across) * taskColumns;
    const height = least(taskRows, rows - m);
    const span = least(taskColumns, columns - n);
    const out = c + ((<usize>(m * columns + n)) << 2);
    for (let k0 = 0; k0 < k; k0 += DEPTH) {
      const depth = least(DEPTH, k - k0);
      if (transposed) decodeAcross(format, parts, width, n, span, k0, depth, panels, run);
      else decodeDown(format, parts, width, n, span, k0, depth, panels, run);
      const a = tiles + ((<usize>(rows * k0 + m * depth)) << 2);
      multiplyBlock(height, span, depth, a, panels, out, columns, k0 > 0 ? 1 : 0, scratch);
    }
  }
}

/** Panels of Wᵀ: 8 rows of W decoded side by side, then transposed. */
export function decodeDown(format: i32, parts: usize, width: i32, n: i32, span: i32, k0: i32, depth: i32, panels: usize, rows: usize): void {
  const table = changetype<Parts>(parts);
  for (let p = 0; p < span; p += 8) {
    const count = least(8, span - p);
    for (let r = 0; r < count; r++) decode(format, table, <u32>(n + p + r) * width + k0, depth, rows + ((<usize>(r * DEPTH)) << 2));
    packPanels(rows, DEPTH, 1, count, depth, panels + ((<usize>(p * depth)) << 2));
  }
}

/** Panels of W: a run of each row decoded, then cut into the panels. */
export function decodeAcross(format: i32, parts: usize, width: i32, n: i32, span: i32, k0: i32, depth: i32, panels: usize, run: usize): void {
  const table = changetype<Parts>(parts);
  const whole = span & ~7;
  for (let i = 0; i < depth; i++) {
    decode(format, table, <u32>(k0 + i) * width + n, span, run);
    let to = panels + ((<usize>(i * 8)) << 2);
    const step = (<usize>(depth * 8)) << 2;
    for (let p = 0; p < whole; p += 8) {
      const from = run + ((<usize>p) << 2);
      v128.store(to, v128.load(from));
      v128.store(to, v128.load(from, 16), 16);
      to += step;
    }
    if (whole < span) {
      for (let r = 0; r < 8; r++) store<f32>(to + (r << 2), whole + r < span ? load<f32>(run + ((<usize>(whole + r)) << 2)) : 0);
    }
  }
}

/** Elements of a row that are decoded before they are used, when there are few rows of x. */
const RUN: i32 = 512;

/** Bytes of scratch of the two products below. */
export function packedRunBytes(): i32 {
  return 64 + RUN * 4;
}

/** Task t: `taskColumns` columns of c [rows <= 4, out] = x [rows, in] · Wᵀ. */
export function multiplyFewRows(x: usize, format: i32, parts: usize, width: i32, c: usize, rows: i32, columns: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const table = changetype<Parts>(parts);
  const run = scratch + 64;
  const end = least(columns, last * taskColumns);
  const stride = (<usize>width) << 2;
  for (let n = first * taskColumns; n < end; n++) {
    let s0: f32 = 0;
    let s1: f32 = 0;
    let s2: f32 = 0;
    let s3: f32 = 0;
    for (let k0 = 0; k0 < width; k0 += RUN) {
      const count = least(RUN, width - k0);
      decode(format, table, <u32>n * width + k0, count, run);
      const at = x + ((<usize>k0) << 2);
      s0 += dot(run, at, count);
      if (rows > 1) s1 += dot(run, at + stride, count);
      if (rows > 2) s2 += dot(run, at + 2 * stride, count);
      if (rows > 3) s3 += dot(run, at + 3 * stride, count);
    }
    const out = c + ((<usize>n) << 2);
    const row = (<usize>columns) << 2;
    store<f32>(out, s0);
    if (rows > 1) store<f32>(out + row, s1);
    if (rows > 2) store<f32>(out + 2 * row, s2);
    if (rows > 3) store<f32>(out + 3 * row, s3);
  }
}

function dot(a: usize, b: usize, count: i32): f32 {
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let i = 0;
  for (; i + 16 <= count; i += 16) {
    s0 = madd(v128.load(a), v128.load(b), s0);
    s1 = madd(v128.load(a, 16), v128.load(b, 16), s1);
    s2 = madd(v128.load(a, 32), v128.load(b, 32), s2);
    s3 = madd(v128.load(a, 48), v128.load(b, 48), s3);
    a += 64;
    b += 64;
  }
  let sum = laneSum(f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
  for (; i < count; i++) {
    sum += load<f32>(a) * load<f32>(b);
    a += 4;
    b += 4;
  }
  return sum;
}

/** Task t: `taskColumns` columns (whole GGUF blocks, at most RUN) of c [rows <= 4, in] = x [rows, out] · W. */
export function multiplyFewRowsTransposed(x: usize, format: i32, parts: usize, width: i32, c: usize, rows: i32, depth: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const table = changetype<Parts>(parts);
  const run = scratch + 64;
  for (let task = first; task < last; task++) {
    const n = task * taskColumns;
    const span = least(taskColumns, width - n);
    for (let m = 0; m < rows; m++) memory.fill(c + ((<usize>(m * width + n)) << 2), 0, (<usize>span) << 2);
    for (let i = 0; i < depth; i++) {
      decode(format, table, <u32>i * width + n, span, run);
      for (let m = 0; m < rows; m++) addScaled(run, load<f32>(x + ((<usize>(m * depth + i)) << 2)), c + ((<usize>(m * width + n)) << 2), span);
    }
  }
}

function addScaled(source: usize, factor: f32, target: usize, count: i32): void {
  const f = f32x4.splat(factor);
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    v128.store(target, madd(v128.load(source), f, v128.load(target)));
    source += 16;
    target += 16;
  }
  for (; i < count; i++) {
    store<f32>(target, load<f32>(target) + load<f32>(source) * factor);
    source += 4;
    target += 4;
  }
}

/** Task t: the t-th of the rows named by ids, decoded to out [rows, width]. */
export function packedRows(ids: usize, format: i32, parts: usize, width: i32, out: usize, first: i32, last: i32, scratch: usize): void {
  const table = changetype<Parts>(parts);
  for (let i = first; i < last; i++) {
    decode(format, table, <u32>load<i32>(ids + ((<usize>i) << 2)) * width, width, out + (((<usize>i) * width) << 2));
  }
}
