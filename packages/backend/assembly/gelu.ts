import { exp4, sigmoid4 } from './exp';
import { loadEntries, storeEntries } from './entries';
import { least, madd } from './lanes';

/** 2 · √(2/π), and the same times the cubic coefficient. */
const TWICE_OUTER: f32 = 1.5957691216057308;
const TWICE_OUTER_CUBIC: f32 = 0.07135481627159976;

/** The part of x that gelu lets through: Φ(x) (form 0), or the sigmoid that stands for it (form 1). */
// @ts-ignore: decorator
@inline
function share(x: v128, form: i32): v128 {
  if (form === 1) {
    return sigmoid4(f32x4.mul(x, madd(f32x4.mul(x, x), f32x4.splat(TWICE_OUTER_CUBIC), f32x4.splat(TWICE_OUTER))));
  }
  // 1 - Φ(|x|) by Abramowitz & Stegun 7.1.26, good to 1e-7; both halves from it, so that neither is a difference of large numbers.
  const size = f32x4.abs(x);
  const t = f32x4.div(f32x4.splat(1), madd(size, f32x4.splat(<f32>(0.3275911 * 0.7071067811865476)), f32x4.splat(1)));
  let p = madd(f32x4.splat(1.061405429), t, f32x4.splat(-1.453152027));
  p = madd(p, t, f32x4.splat(1.421413741));
  p = madd(p, t, f32x4.splat(-0.284496736));
  p = madd(p, t, f32x4.splat(0.254829592));
  const tail = f32x4.mul(f32x4.mul(f32x4.mul(p, t), f32x4.splat(0.5)), exp4(f32x4.mul(f32x4.mul(x, x), f32x4.splat(-0.5))));
  return v128.bitselect(tail, f32x4.sub(f32x4.splat(1), tail), f32x4.lt(x, f32x4.splat(0)));
}

/** The derivative of the share. */
// @ts-ignore: decorator
@inline
function slope(x: v128, s: v128, form: i32): v128 {
  const square = f32x4.mul(x, x);
  if (form === 0) return f32x4.mul(exp4(f32x4.mul(square, f32x4.splat(-0.5))), f32x4.splat(0.3989422804014327));
  const inner = madd(square, f32x4.splat(3 * TWICE_OUTER_CUBIC), f32x4.splat(TWICE_OUTER));
  return f32x4.mul(f32x4.mul(s, f32x4.sub(f32x4.splat(1), s)), inner);
}

/** Task t: entries [t · taskSize, ...) of y = gelu(x). */
export function gelu(x: usize, y: usize, size: i32, form: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  const end = least(size, last * taskSize);
  for (let i = first * taskSize; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    const v = loadEntries(x + at, left);
    const result = f32x4.mul(v, share(v, form));
    storeEntries(y + at, result, left);
  }
}

/** Task t: the same entries of dx = dy · (share + x · slope). */
export function geluGrad(dy: usize, x: usize, dx: usize, size: i32, form: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  const end = least(size, last * taskSize);
  for (let i = first * taskSize; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    const v = loadEntries(x + at, left);
    const d = loadEntries(dy + at, left);
    const s = share(v, form);
    const result = f32x4.mul(d, madd(v, slope(v, s, form), s));
    storeEntries(dx + at, result, left);
  }
}
