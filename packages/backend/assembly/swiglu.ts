import { sigmoid4 } from './exp';
import { loadEntries, loadTail, storeEntries, storeTail } from './entries';
import { least, madd } from './lanes';

// @ts-ignore: decorator
@inline
function forward(gate: v128, up: v128): v128 {
  return f32x4.mul(f32x4.mul(gate, sigmoid4(gate)), up);
}

/** Task t: entries [t · taskSize, ...) of y = silu(gate) · up. */
export function swiglu(gate: usize, up: usize, y: usize, size: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  let i = first * taskSize;
  const end = least(size, last * taskSize);
  for (; i + 4 <= end; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, forward(v128.load(gate + at), v128.load(up + at)));
  }
  if (i < end) {
    const at = (<usize>i) << 2;
    storeTail(y + at, forward(loadTail(gate + at, end - i), loadTail(up + at, end - i)), end - i);
  }
}

/** Task t: the same entries of dgate = dy · up · (s + silu · (1 - s)) and dup = dy · silu. */
export function swigluGrad(dy: usize, gate: usize, up: usize, dgate: usize, dup: usize, size: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  let i = first * taskSize;
  const end = least(size, last * taskSize);
  const one = f32x4.splat(1);
  for (; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    const g = loadEntries(gate + at, left);
    const u = loadEntries(up + at, left);
    const d = loadEntries(dy + at, left);
    const s = sigmoid4(g);
    const silu = f32x4.mul(g, s);
    const slope = madd(silu, f32x4.sub(one, s), s);
    const forGate = f32x4.mul(f32x4.mul(d, u), slope);
    const forUp = f32x4.mul(d, silu);
    storeEntries(dgate + at, forGate, left);
    storeEntries(dup + at, forUp, left);
  }
}
