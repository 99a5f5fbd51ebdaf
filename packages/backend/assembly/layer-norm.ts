import { laneSum, least, madd } from './lanes';

function rowMean(x: usize, width: i32): f32 {
  const bytes = (<usize>width) << 2;
  let sums = f32x4.splat(0);
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) sums = f32x4.add(sums, v128.load(x + i));
  let sum = laneSum(sums);
  for (; i < bytes; i += 4) sum += load<f32>(x + i);
  return sum / <f32>width;
}

/** 1 / sqrt(variance + eps) of one row, from the differences: the mean of squares less the square of the mean loses digits. */
function reciprocalDeviation(x: usize, width: i32, mean: f32, eps: f32): f32 {
  const bytes = (<usize>width) << 2;
  const m = f32x4.splat(mean);
  let sums = f32x4.splat(0);
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) {
    const d = f32x4.sub(v128.load(x + i), m);
    sums = madd(d, d, sums);
  }
  let sum = laneSum(sums);
  for (; i < bytes; i += 4) {
    const d = load<f32>(x + i) - mean;
    sum += d * d;
  }
  return <f32>1 / sqrt<f32>(sum / <f32>width + eps);
}

/** Task t: rows [t · taskRows, ...) of y = weight · (x - mean) / deviation + bias. */
export function layerNorm(
  x: usize,
  weight: usize,
  bias: usize,
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
    const from = x + row * bytes;
    const to = y + row * bytes;
    const mean = rowMean(from, width);
    const scale = reciprocalDeviation(from, width, mean, eps);
    const m = f32x4.splat(mean);
    const r = f32x4.splat(scale);
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) {
      const normalized = f32x4.mul(f32x4.sub(v128.load(from + i), m), r);
      v128.store(to + i, madd(normalized, v128.load(weight + i), v128.load(bias + i)));
    }
    for (; i < bytes; i += 4) store<f32>(to + i, (load<f32>(from + i) - mean) * scale * load<f32>(weight + i) + load<f32>(bias + i));
  }
}

/**
 * Task t: rows [t · taskRows, ...) of dx, and this task's shares of dweight and dbias in partial[t] [2, width] (0: not
 * wanted). Shares are by task and not by thread, so that their sum does not depend on who computed them.
 */
export function layerNormGrad(
  dy: usize,
  x: usize,
  weight: usize,
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
    const share = partial + 2 * task * bytes;
    if (partial) memory.fill(share, 0, 2 * bytes);
    const end = least(rows, (task + 1) * taskRows);
    for (let row = task * taskRows; row < end; row++) {
      rowGradient(dy + row * bytes, x + row * bytes, weight, dx + row * bytes, partial ? share : 0, width, eps);
    }
  }
}

function rowGradient(dy: usize, x: usize, weight: usize, dx: usize, share: usize, width: i32, eps: f32): void {
  const bytes = (<usize>width) << 2;
  const mean = rowMean(x, width);
  const scale = reciprocalDeviation(x, width, mean, eps);
  const m = f32x4.splat(mean);
  const r = f32x4.splat(scale);
  let sums = f32x4.splat(0);
  let alongs = f32x4.splat(0);
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) {
    const d = v128.load(dy + i);
    const normalized = f32x4.mul(f32x4.sub(v128.load(x + i), m), r);
    const scaled = f32x4.mul(d, v128.load(weight + i));
    sums = f32x4.add(sums, scaled);
    alongs = madd(scaled, normalized, alongs);
    if (share) {
      v128.store(share + i, madd(d, normalized, v128.load(share + i)));
      v128.store(share + bytes + i, f32x4.add(d, v128.load(share + bytes + i)));
    }
  }
  let sum = laneSum(sums);
  let along = laneSum(alongs);
  for (; i < bytes; i += 4) {
    const d = load<f32>(dy + i);
    const normalized = (load<f32>(x + i) - mean) * scale;
    const scaled = d * load<f32>(weight + i);
    sum += scaled;
    along += scaled * normalized;
    if (share) {
      store<f32>(share + i, load<f32>(share + i) + d * normalized);
      store<f32>(share + bytes + i, load<f32>(share + bytes + i) + d);
    }
  }
  const meanSum = sum / <f32>width;
  const meanAlong = along / <f32>width;
  const s = f32x4.splat(meanSum);
  const a = f32x4.splat(meanAlong);
  i = 0;
  for (; i + 16 <= bytes; i += 16) {
    const normalized = f32x4.mul(f32x4.sub(v128.load(x + i), m), r);
    const scaled = f32x4.mul(v128.load(dy + i), v128.load(weight + i));
    v128.store(dx + i, f32x4.mul(r, f32x4.sub(f32x4.sub(scaled, s), f32x4.mul(normalized, a))));
  }
  for (; i < bytes; i += 4) {
    const normalized = (load<f32>(x + i) - mean) * scale;
    store<f32>(dx + i, scale * (load<f32>(dy + i) * load<f32>(weight + i) - meanSum - normalized * meanAlong));
  }
}
