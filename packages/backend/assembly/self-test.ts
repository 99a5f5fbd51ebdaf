/** Relaxed instructions one by one, so that a device whose answers are wrong is found out before it is used. */
import { lookup, madd } from './lanes';

export function testMadd(a: f32, b: f32, c: f32): f32 {
  return f32x4.extract_lane(madd(f32x4.splat(a), f32x4.splat(b), f32x4.splat(c)), 2);
}

/** Entry `index` of the table 100, 101, ... 115. */
export function testLookup(index: i32): i32 {
  return i8x16.extract_lane_u(lookup(v128(100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115), i8x16.splat(<i8>index)), 5);
}
