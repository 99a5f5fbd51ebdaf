/**
 * Sums over one axis of [outer, axis, inner], divided by `divisor`. Long sums run in blocks whose totals are added up, so
 * that the rounding error does not grow with the length as that of one running f32 sum does.
 */
import { laneSum, least } from './lanes';

const BLOCK: i32 = 512;

function rowSum(at: usize, count: i32): f64 {
  let total: f64 = 0;
  while (count >= 16) {
    let n = least(count, BLOCK);
    count -= n & ~15;
    let a = f32x4.splat(0);
    let b = a;
    let c = a;
    let d = a;
    for (; n >= 16; n -= 16) {
      a = f32x4.add(a, v128.load(at));
      b = f32x4.add(b, v128.load(at, 16));
      c = f32x4.add(c, v128.load(at, 32));
      d = f32x4.add(d, v128.load(at, 48));
      at += 64;
    }
    total += <f64>laneSum(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  for (; count > 0; count--) {
    total += <f64>load<f32>(at);
    at += 4;
  }
  return total;
}

/** inner = 1. Task t: rows [t · taskRows, ...) of out [outer]. */
export function sumRow(x: usize, out: usize, outer: i32, axis: i32, divisor: f32, taskRows: i32, first: i32, last: i32, scratch: usize): void {
  const end = least(outer, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    store<f32>(out + ((<usize>row) << 2), <f32>(rowSum(x + (<usize>row) * ((<usize>axis) << 2), axis) / <f64>divisor));
  }
}

/** Columns that are summed at a time: their totals stay in the first cache. */
const STRIP: i32 = 1024;

/** Bytes of scratch of `sumColumn`. */
export function sumColumnBytes(): i32 {
  return STRIP * 4;
}

/** Task t: one strip of columns of one outer index of out [outer, inner]. */
export function sumColumn(x: usize, out: usize, axis: i32, inner: i32, divisor: f32, first: i32, last: i32, scratch: usize): void {
  const strips = (inner + STRIP - 1) / STRIP;
  const stride = (<usize>inner) << 2;
  for (let task = first; task < last; task++) {
    const n = (task % strips) * STRIP;
    const bytes = (<usize>least(STRIP, inner - n)) << 2;
    const outer = task / strips;
    const to = out + (<usize>outer) * stride + ((<usize>n) << 2);
    let from = x + (<usize>(outer * axis)) * stride + ((<usize>n) << 2);
    memory.fill(to, 0, bytes);
    for (let row = 0; row < axis; row += BLOCK) {
      const end = least(axis, row + BLOCK);
      memory.copy(scratch, from, bytes);
      from += stride;
      for (let r = row + 1; r < end; r++) {
        addTo(scratch, from, bytes);
        from += stride;
      }
      addTo(to, scratch, bytes);
    }
    if (divisor !== 1) for (let i: usize = 0; i < bytes; i += 4) store<f32>(to + i, load<f32>(to + i) / divisor);
  }
}

function addTo(target: usize, source: usize, bytes: usize): void {
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(target + i, f32x4.add(v128.load(target + i), v128.load(source + i)));
  for (; i < bytes; i += 4) store<f32>(target + i, load<f32>(target + i) + load<f32>(source + i));
}
