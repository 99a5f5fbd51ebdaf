import { loadTail, storeTail } from './entries';
import { least } from './lanes';

/** Task t: entries [t · taskSize, ...) of next = old · keep + update · scale, each rounded by itself. */
export function commitUpdate(
  old: usize,
  update: usize,
  next: usize,
  size: i32,
  keep: f32,
  scale: f32,
  taskSize: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const k = f32x4.splat(keep);
  const s = f32x4.splat(scale);
  const end = least(size, last * taskSize);
  for (let i = first * taskSize; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    const whole = left >= 4;
    const o = whole ? v128.load(old + at) : loadTail(old + at, left);
    const u = whole ? v128.load(update + at) : loadTail(update + at, left);
    const n = f32x4.add(f32x4.mul(o, k), f32x4.mul(u, s));
    if (whole) v128.store(next + at, n);
    else storeTail(next + at, n, left);
  }
}
