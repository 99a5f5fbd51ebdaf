import { exp1, exp4, log } from './exp';
import { laneMax, laneSum, least } from './lanes';

/** Task t: rows [t · taskRows, ...) of the loss and log-sum-exp of logits [rows, width] against int32 targets. */
export function crossEntropy(logits: usize, targets: usize, loss: usize, logSumExp: usize, rows: i32, width: i32, taskRows: i32, first: i32, last: i32, scratch: usize): void {
  const end = least(rows, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    const at = logits + (<usize>row) * ((<usize>width) << 2);
    const peak = rowMax(at, width);
    const total = peak + log(rowExpSum(at, width, peak));
    const target = load<i32>(targets + ((<usize>row) << 2));
    const picked = target >= 0 && target < width ? load<f32>(at + ((<usize>target) << 2)) : <f32>0;
    store<f32>(logSumExp + ((<usize>row) << 2), total);
    store<f32>(loss + ((<usize>row) << 2), target >= 0 ? total - picked : <f32>0);
  }
}

function rowMax(at: usize, width: i32): f32 {
  let a = f32x4.splat(-Infinity);
  let b = a;
  let i = 0;
  for (; i + 8 <= width; i += 8) {
    a = f32x4.pmax(a, v128.load(at + ((<usize>i) << 2)));
    b = f32x4.pmax(b, v128.load(at + ((<usize>i) << 2), 16));
  }
  let peak = laneMax(f32x4.pmax(a, b));
  for (; i < width; i++) peak = max(peak, load<f32>(at + ((<usize>i) << 2)));
  return peak;
}

function rowExpSum(at: usize, width: i32, peak: f32): f32 {
  const p = f32x4.splat(peak);
  let a = f32x4.splat(0);
  let b = a;
  let i = 0;
  for (; i + 8 <= width; i += 8) {
    a = f32x4.add(a, exp4(f32x4.sub(v128.load(at + ((<usize>i) << 2)), p)));
    b = f32x4.add(b, exp4(f32x4.sub(v128.load(at + ((<usize>i) << 2), 16), p)));
  }
  let sum = laneSum(f32x4.add(a, b));
  for (; i < width; i++) sum += exp1(load<f32>(at + ((<usize>i) << 2)) - peak);
  return sum;
}

/** Task t: the same rows of dlogits = dloss · (softmax - one-hot); a negative target gives zeros. dlogits may be the logits. */
export function crossEntropyGrad(
  dloss: usize,
  logits: usize,
  targets: usize,
  logSumExp: usize,
  dlogits: usize,
  rows: i32,
  width: i32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>width) << 2;
  const end = least(rows, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    const from = logits + row * bytes;
    const to = dlogits + row * bytes;
    const target = load<i32>(targets + ((<usize>row) << 2));
    if (target < 0) {
      memory.fill(to, 0, bytes);
      continue;
    }
    const slope = load<f32>(dloss + ((<usize>row) << 2));
    const total = load<f32>(logSumExp + ((<usize>row) << 2));
    const d = f32x4.splat(slope);
    const l = f32x4.splat(total);
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) v128.store(to + i, f32x4.mul(exp4(f32x4.sub(v128.load(from + i), l)), d));
    for (; i < bytes; i += 4) store<f32>(to + i, exp1(load<f32>(from + i) - total) * slope);
    if (target < width) {
      const at = to + ((<usize>target) << 2);
      store<f32>(at, load<f32>(at) - slope);
    }
  }
}
