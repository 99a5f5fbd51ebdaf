import { least } from './lanes';

/**
 * Task t: rows [t · taskRows, ...) of q [rows, heads, 2 · half] and k [rows, kvHeads, 2 · half] rotated by the row's angles;
 * `direction` -1 rotates back.
 */
export function rope(
  q: usize,
  k: usize,
  cos: usize,
  sin: usize,
  toQ: usize,
  toK: usize,
  rows: i32,
  heads: i32,
  kvHeads: i32,
  half: i32,
  direction: f32,
  taskRows: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>half) << 2;
  const end = least(rows, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    const c = cos + row * bytes;
    const s = sin + row * bytes;
    const atQ = (<usize>(row * heads)) * 2 * bytes;
    const atK = (<usize>(row * kvHeads)) * 2 * bytes;
    rotate(q + atQ, toQ + atQ, heads, c, s, bytes, direction);
    rotate(k + atK, toK + atK, kvHeads, c, s, bytes, direction);
  }
}

/** The heads of one row; `bytes` is the length of half a head. */
function rotate(from: usize, to: usize, heads: i32, c: usize, s: usize, bytes: usize, direction: f32): void {
  const sign = f32x4.splat(direction);
  for (let head = 0; head < heads; head++) {
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) {
      const a = v128.load(from + i);
      const b = v128.load(from + i + bytes);
      const u = v128.load(c + i);
      const v = f32x4.mul(v128.load(s + i), sign);
      v128.store(to + i, f32x4.sub(f32x4.mul(a, u), f32x4.mul(b, v)));
      v128.store(to + i + bytes, f32x4.add(f32x4.mul(b, u), f32x4.mul(a, v)));
    }
    for (; i < bytes; i += 4) {
      const a = load<f32>(from + i);
      const b = load<f32>(from + i + bytes);
      const u = load<f32>(c + i);
      const v = load<f32>(s + i) * direction;
      store<f32>(to + i, a * u - b * v);
      store<f32>(to + i + bytes, b * u + a * v);
    }
    from += 2 * bytes;
    to += 2 * bytes;
  }
}
