/** Relaxed instructions one by one, so that a device whose answers are wrong is found out before it is used. */
import { dotBytes, lookup, madd } from './lanes';

export function testMadd(a: f32, b: f32, c: f32): f32 {
  return f32x4.extract_lane(madd(f32x4.splat(a), f32x4.splat(b), f32x4.splat(c)), 2);
}

/** Entry `index` of the table 100, 101, ... 115. */
export function testLookup(index: i32): i32 {
  return i8x16.extract_lane_u(lookup(v128(100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115), i8x16.splat(<i8>index)), 5);
}

/** 2 · a · b, the sum of one pair of bytes; b from 0 to 127. */
export function testDotBytes(a: i32, b: i32): i32 {
  return i16x8.extract_lane_s(dotBytes(i8x16.splat(<i8>a), i8x16.splat(<i8>b)), 3);
}

/** `count` rounds of 12 independent multiply-adds on registers alone, 96 floating-point operations each: what the machine could do at best. */
export function peak(count: i32, x: f32): f32 {
  const a = f32x4.splat(x);
  let c0 = f32x4.splat(0);
  let c1 = c0;
  let c2 = c0;
  let c3 = c0;
  let c4 = c0;
  let c5 = c0;
  let c6 = c0;
  let c7 = c0;
  let c8 = c0;
  let c9 = c0;
  let c10 = c0;
  let c11 = c0;
  while (count > 0) {
    c0 = madd(a, a, c0);
    c1 = madd(a, a, c1);
    c2 = madd(a, a, c2);
    c3 = madd(a, a, c3);
    c4 = madd(a, a, c4);
    c5 = madd(a, a, c5);
    c6 = madd(a, a, c6);
    c7 = madd(a, a, c7);
    c8 = madd(a, a, c8);
    c9 = madd(a, a, c9);
    c10 = madd(a, a, c10);
    c11 = madd(a, a, c11);
    count -= 1;
  }
  const s0 = f32x4.add(f32x4.add(c0, c1), f32x4.add(c2, c3));
  const s1 = f32x4.add(f32x4.add(c4, c5), f32x4.add(c6, c7));
  const s2 = f32x4.add(f32x4.add(c8, c9), f32x4.add(c10, c11));
  return f32x4.extract_lane(f32x4.add(s0, f32x4.add(s1, s2)), 0);
}
