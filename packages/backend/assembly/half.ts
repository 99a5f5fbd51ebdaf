/** Four IEEE halves in the low 16 bits of each lane, as floats; subnormals, infinities and NaN included. */
// @ts-ignore: decorator
@inline
export function halves(bits: v128): v128 {
  // The sign stays on top; the exponent's bias differs by 112: a product with 2^112 is exact, and turns subnormal halves
  // into normal floats.
  const moved = v128.and(i32x4.shr_s(i32x4.shl(bits, 16), 3), i32x4.splat(0x8fffffff));
  const value = f32x4.mul(moved, f32x4.splat(5.192296858534828e33));
  // Infinities and NaN came out as numbers of 2^16 and more.
  const top = i32x4.splat(0x0f800000);
  return v128.or(value, v128.and(i32x4.eq(v128.and(moved, top), top), i32x4.splat(0x7f800000)));
}

/** The half stored at an address. */
// @ts-ignore: decorator
@inline
export function half(at: usize): f32 {
  return f32x4.extract_lane(halves(i32x4.splat(load<u16>(at))), 0);
}
