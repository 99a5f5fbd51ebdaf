import { loadEntries, storeEntries } from './entries';
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
    const o = loadEntries(old + at, left);
    const u = loadEntries(update + at, left);
    const n = f32x4.add(f32x4.mul(o, k), f32x4.mul(u, s));
    storeEntries(next + at, n, left);
  }
}
