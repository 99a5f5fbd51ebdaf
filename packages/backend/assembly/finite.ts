import { least } from './lanes';

/**
 * Task t: 1 or 0 to found[t], whether the entries [t · taskSize, ...) are all finite. An exponent of all ones is an
 * infinity or a NaN, and x · 0 is then NaN: sums of such products stay 0 exactly while all is finite.
 */
export function finite(x: usize, found: usize, size: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  const zero = f32x4.splat(0);
  for (let task = first; task < last; task++) {
    let a = zero;
    let b = zero;
    let i = task * taskSize;
    const end = least(size, i + taskSize);
    for (; i + 8 <= end; i += 8) {
      const at = x + ((<usize>i) << 2);
      a = f32x4.add(a, f32x4.mul(v128.load(at), zero));
      b = f32x4.add(b, f32x4.mul(v128.load(at, 16), zero));
    }
    let rest: f32 = 0;
    for (; i < end; i++) rest += load<f32>(x + ((<usize>i) << 2)) * 0;
    const all = i32x4.all_true(f32x4.eq(f32x4.add(a, b), zero)) && rest === 0;
    store<i32>(found + ((<usize>task) << 2), all ? 1 : 0);
  }
}
