/** Adam of four entries, for moments of any storage. */
import { madd } from './lanes';

/** m = beta·m + rest·g. */
// @ts-ignore: decorator
@inline
export function nextMomentum(m: v128, g: v128, beta: f32, rest: f32): v128 {
  return madd(f32x4.splat(beta), m, f32x4.mul(f32x4.splat(rest), g));
}

/** v = beta·v + rest·g². */
// @ts-ignore: decorator
@inline
export function nextVariance(v: v128, g: v128, beta: f32, rest: f32): v128 {
  return madd(f32x4.splat(beta), v, f32x4.mul(f32x4.splat(rest), f32x4.mul(g, g)));
}

/** (m / correction1) / (√(v / correction2) + eps). */
// @ts-ignore: decorator
@inline
export function adamDirection(m: v128, v: v128, correction1: v128, correction2: v128, eps: f32): v128 {
  return f32x4.div(f32x4.div(m, correction1), f32x4.add(f32x4.sqrt(f32x4.div(v, correction2)), f32x4.splat(eps)));
}
