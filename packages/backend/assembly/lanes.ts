import { RELAXED } from './variant';

/** c + a·b: one rounding where the machine fuses (relaxed), else two. */
// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  if (RELAXED) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(c, f32x4.mul(a, b));
}

/** table[index] per byte; indices must be below 16, where both instructions agree. */
// @ts-ignore: decorator
@inline
export function lookup(table: v128, index: v128): v128 {
  if (RELAXED) return i8x16.relaxed_swizzle(table, index);
  return i8x16.swizzle(table, index);
}

/** a · b for 16 signed bytes and 16 below 128, summed in pairs. Only where RELAXED: without the instruction, words are as fast. */
// @ts-ignore: decorator
@inline
export function dotBytes(a: v128, b: v128): v128 {
  if (RELAXED) return i16x8.relaxed_dot_i8x16_i7x16_s(a, b);
  return unreachable();
}

/** The lower four bits of each byte. */
// @ts-ignore: decorator
@inline
export function lowNibbles(bytes: v128): v128 {
  return v128.and(bytes, i8x16.splat(15));
}

/** The upper four bits of each byte, moved down. Machines have no shift by bytes: V8 makes its mask anew each time. */
// @ts-ignore: decorator
@inline
export function highNibbles(bytes: v128): v128 {
  return v128.and(i16x8.shr_u(bytes, 4), i8x16.splat(15));
}

/** Sum of the four lanes, pairwise. */
// @ts-ignore: decorator
@inline
export function laneSum(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}

// @ts-ignore: decorator
@inline
export function laneMax(v: v128): f32 {
  return max(max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)), max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)));
}

/** The smaller of two counts; `min` of AssemblyScript is a generic that reads worse beside casts. */
// @ts-ignore: decorator
@inline
export function least(a: i32, b: i32): i32 {
  return a < b ? a : b;
}
