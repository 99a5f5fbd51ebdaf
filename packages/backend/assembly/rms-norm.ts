import { laneSum, least, madd } from './lanes';

/** 1 / sqrt(mean(x²) + eps) of one row. */
function reciprocalRms(x: usize, width: i32, eps: f32): f32 {
  let a = f32x4.splat(0);
  let b = f32x4.splat(0);
  let i = 0;
  for (; i + 8 <= width; i += 8) {
    const u = v128.load(x + ((<usize>i) << 2));
    const v = v128.load(x + ((<usize>i) << 2), 16);
    a = madd(u, u, a);
    b = madd(v, v, b);
  }
  let sum = laneSum(f32x4.add(a, b));
  for (; i < width; i++) {
    const v = load<f32>(x + ((<usize>i) << 2));
    sum += v * v;
  }
  return <f32>1 / sqrt<f32>(sum / <f32>width + eps);
}

/**
 * Task t: rows [t · taskRows, ...) of y = weight · x / rms(x). With `delta`, of the sum x + delta, which goes to `total`
 * (0 and 0: of x itself).
 */
export function rmsNorm(
  x: usize,
  delta: usize,
  weight: usize,
  total: usize,
  y: usize,
  rows: i32,
  width: i32,
  eps: f32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>width) << 2;
  const end = least(rows, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    let from = x + row * bytes;
    const to = y + row * bytes;
    if (delta) {
      addRow(from, delta + row * bytes, total + row * bytes, bytes);
      from = total + row * bytes;
    }
    const scale = reciprocalRms(from, width, eps);
    const r = f32x4.splat(scale);
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) v128.store(to + i, f32x4.mul(f32x4.mul(v128.load(from + i), r), v128.load(weight + i)));
    for (; i < bytes; i += 4) store<f32>(to + i, load<f32>(from + i) * scale * load<f32>(weight + i));
  }
}

function addRow(a: usize, b: usize, to: usize, bytes: usize): void {
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(to + i, f32x4.add(v128.load(a + i), v128.load(b + i)));
  for (; i < bytes; i += 4) store<f32>(to + i, load<f32>(a + i) + load<f32>(b + i));
}

/**
 * Task t: rows [t · taskRows, ...) of dx (plus `beside`, 0: nothing), and this task's share of dweight in partial[t] [width] (0: not wanted). Shares
 * are by task and not by thread, so that their sum does not depend on who computed them.
 */
export function rmsNormGrad(
  dy: usize,
  x: usize,
  weight: usize,
  beside: usize,
  dx: usize,
  partial: usize,
  rows: i32,
  width: i32,
  eps: f32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>width) << 2;
  for (let task = first; task < last; task++) {
    const share = partial + task * bytes;
    if (partial) memory.fill(share, 0, bytes);
    const end = least(rows, (task + 1) * taskRows);
    for (let row = task * taskRows; row < end; row++) {
      rowGradient(dy + row * bytes, x + row * bytes, weight, beside ? beside + row * bytes : 0, dx + row * bytes, partial ? share : 0, width, eps);
    }
  }
}

function rowGradient(dy: usize, x: usize, weight: usize, beside: usize, dx: usize, share: usize, width: i32, eps: f32): void {
  const bytes = (<usize>width) << 2;
  const scale = reciprocalRms(x, width, eps);
  const r = f32x4.splat(scale);
  let sums = f32x4.splat(0);
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) {
    const d = v128.load(dy + i);
    const normalized = f32x4.mul(v128.load(x + i), r);
    sums = madd(f32x4.mul(d, v128.load(weight + i)), normalized, sums);
    if (share) v128.store(share + i, madd(d, normalized, v128.load(share + i)));
  }
  let sum = laneSum(sums);
  for (; i < bytes; i += 4) {
    const d = load<f32>(dy + i);
    const normalized = load<f32>(x + i) * scale;
    sum += d * load<f32>(weight + i) * normalized;
    if (share) store<f32>(share + i, load<f32>(share + i) + d * normalized);
  }
  const mean = sum / <f32>width;
  const m = f32x4.splat(mean);
  i = 0;
  for (; i + 16 <= bytes; i += 16) {
    const normalized = f32x4.mul(v128.load(x + i), r);
    const own = f32x4.mul(r, f32x4.sub(f32x4.mul(v128.load(dy + i), v128.load(weight + i)), f32x4.mul(normalized, m)));
    v128.store(dx + i, beside ? f32x4.add(v128.load(beside + i), own) : own);
  }
  for (; i < bytes; i += 4) {
    const normalized = load<f32>(x + i) * scale;
    const own = scale * (load<f32>(dy + i) * load<f32>(weight + i) - normalized * mean);
    store<f32>(dx + i, beside ? load<f32>(beside + i) + own : own);
  }
}
