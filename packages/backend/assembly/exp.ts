import { madd } from './lanes';

/** 1.5 · 2^23: a float that large has no fraction, so adding it rounds to the nearest integer, left in the low bits. */
const ROUND: f32 = 12582912;

/**
 * e^x in four lanes, about 1e-7 relative: x = n·ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, and n into the exponent
 * bits. Below -87 the result stays a tiny normal number, above 88 the largest one: never zero, infinity or a subnormal.
 * NaN stays NaN. (pmin and pmax are one instruction each where min and max are seven, and pass a NaN on in this order.)
 */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const clamped = f32x4.pmax(f32x4.pmin(x, f32x4.splat(88.02)), f32x4.splat(-87.33));
  const shifted = madd(clamped, f32x4.splat(1.44269504), f32x4.splat(ROUND));
  const n = f32x4.sub(shifted, f32x4.splat(ROUND));
  // ln 2 in two parts, the first short enough that n times it is exact.
  const r = madd(n, f32x4.splat(2.12194440e-4), madd(n, f32x4.splat(-0.693359375), clamped));
  let p = madd(f32x4.splat(1.9875691500e-4), r, f32x4.splat(1.3981999507e-3));
  p = madd(p, r, f32x4.splat(8.3334519073e-3));
  p = madd(p, r, f32x4.splat(4.1665795894e-2));
  p = madd(p, r, f32x4.splat(1.6666665459e-1));
  p = madd(p, r, f32x4.splat(5.0000001201e-1));
  p = madd(p, f32x4.mul(r, r), f32x4.add(r, f32x4.splat(1)));
  return f32x4.mul(p, i32x4.shl(i32x4.add(shifted, i32x4.splat(127)), 23));
}

/** The same for one number: the tail of a row gets what its lanes would have. */
// @ts-ignore: decorator
@inline
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

// @ts-ignore: decorator
@inline
export function sigmoid4(x: v128): v128 {
  return f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.neg(x))));
}

/** ln x of a positive normal number, in f64: x = 2^n · m, ln m by its series in (m - 1) / (m + 1). The library's own needs a table in memory. */
export function log(x: f32): f32 {
  const bits = reinterpret<i32>(x);
  let n = (bits >> 23) - 127;
  let m = <f64>reinterpret<f32>((bits & 0x7fffff) | 0x3f800000);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    n += 1;
  }
  const s = (m - 1) / (m + 1);
  const q = s * s;
  const series = 1 + q * (1 / 3.0 + q * (1 / 5.0 + q * (1 / 7.0 + q * (1 / 9.0 + q * (1 / 11.0 + q * (1 / 13.0))))));
  return <f32>(<f64>n * 0.6931471805599453 + 2 * s * series);
}

/** ln x in four lanes for positive normal numbers, about 1e-7 of the larger of |ln x| and 1; exactly 0 at 1. 0 gives -88. */
// @ts-ignore: decorator
@inline
export function log4(x: v128): v128 {
  // Moved so that the mantissa left over lies in [1/√2, √2).
  const moved = i32x4.sub(x, i32x4.splat(0x3f3504f3));
  const n = f32x4.convert_i32x4_s(i32x4.shr_s(moved, 23));
  const m = i32x4.add(v128.and(moved, i32x4.splat(0x7fffff)), i32x4.splat(0x3f3504f3));
  const s = f32x4.div(f32x4.sub(m, f32x4.splat(1)), f32x4.add(m, f32x4.splat(1)));
  const q = f32x4.mul(s, s);
  let series = madd(f32x4.splat(1 / 9.0), q, f32x4.splat(1 / 7.0));
  series = madd(series, q, f32x4.splat(1 / 5.0));
  series = madd(series, q, f32x4.splat(1 / 3.0));
  series = madd(series, q, f32x4.splat(1));
  return madd(n, f32x4.splat(0.69314718), f32x4.mul(f32x4.add(s, s), series));
}
