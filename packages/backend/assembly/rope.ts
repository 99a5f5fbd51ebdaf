import { least } from './lanes';

/** Task t: rows [t · taskRows, ...) of x [rows, heads, 2 · half] rotated by the row's angles; `direction` -1 rotates back. */
export function rope(x: usize, cos: usize, sin: usize, y: usize, rows: i32, heads: i32, half: i32, direction: f32, taskRows: i32, first: i32, last: i32, scratch: usize): void {
  const bytes = (<usize>half) << 2;
  const sign = f32x4.splat(direction);
  const end = least(rows, last * taskRows);
  for (let row = first * taskRows; row < end; row++) {
    const c = cos + row * bytes;
    const s = sin + row * bytes;
    for (let head = 0; head < heads; head++) {
      const at = (<usize>(row * heads + head)) * 2 * bytes;
      const from = x + at;
      const to = y + at;
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
    }
  }
}
