/** Four IEEE halves in the low 16 bits of each lane, as floats; subnormals, infinities and NaN included. */
// @ts-ignore: decorator
@inline
export function halves(bits: v128): v128 {
  const magnitude = i32x4.shl(v128.and(bits, i32x4.splat(0x7fff)), 13);
  // The exponent's bias differs by 112: a product with 2^112 is exact, and turns subnormal halves into normal floats.
  const value = f32x4.mul(magnitude, f32x4.splat(5.192296858534828e33));
  const special = v128.and(i32x4.ge_s(magnitude, i32x4.splat(0x0f800000)), i32x4.splat(0x7f800000));
  const sign = i32x4.shl(v128.and(bits, i32x4.splat(0x8000)), 16);
  return v128.or(v128.or(value, special), sign);
}

/** The half stored at an address. */
// @ts-ignore: decorator
@inline
export function half(at: usize): f32 {
  return f32x4.extract_lane(halves(i32x4.splat(load<u16>(at))), 0);
}
