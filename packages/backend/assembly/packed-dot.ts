/**
 * One row of x times packed rows, the case of generation: codes are multiplied as they are, and each block's scale is
 * applied once to its sum. w = scale · code + offset gives Σ w·x = scale · Σ code·x + offset · Σ x, and the sums of x over
 * 32 entries are the same for every row of W, so they come in computed.
 */
import { CODEBOOK4, CODEBOOK4_NESTED, blockScale, Parts, PLANES, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, sixBitMin, sixBitScale } from './dequant';
import { half, halves } from './half';
import { highNibbles, laneSum, least, lookup, lowNibbles, madd } from './lanes';
import { transpose4 } from './packing';

/** Task t: sums[t] (four lanes) of the 32 entries of x from 32·t on. */
export function blockSums(x: usize, sums: usize, first: i32, last: i32, scratch: usize): void {
  for (let block = first; block < last; block++) {
    let at = x + ((<usize>block) << 7);
    let a = v128.load(at);
    for (let i = 1; i < 8; i++) {
      at += 16;
      a = f32x4.add(a, v128.load(at));
    }
    v128.store(sums + ((<usize>block) << 4), a);
  }
}

/** Whether a format keeps 32 codes in 16 bytes, entry i beside entry 16 + i: x then comes in as `spreadNibbles` writes it. */
export function takesSpread(format: i32): i32 {
  return format === Q4_0 || format === Q4_1 ? 1 : 0;
}

/**
 * Task t: the 32 entries of x from 32·t on, in the order in which the nibbles of four words come, and divided by what a
 * nibble is worth where it lies: masked in place it is 16^k times its code, so that no code has to be moved.
 */
export function spreadNibbles(x: usize, out: usize, first: i32, last: i32, scratch: usize): void {
  for (let block = first; block < last; block++) {
    const at = (<usize>block) << 7;
    for (let h: usize = 0; h < 2; h++) {
      const from = x + at + (h << 6);
      transpose4(from, from + 16, from + 32, from + 48, out + at + (h << 4), 32);
    }
    let worth: f32 = 1;
    // The uppermost nibble holds the sign: it is shifted down, and its entries stay as they are.
    for (let k: usize = 0; k < 7; k++) {
      const to = out + at + (k << 4);
      v128.store(to, f32x4.mul(v128.load(to), f32x4.splat(worth)));
      worth *= 0.0625;
    }
  }
}

/** Whether `multiplyOneRow` takes a format: its rows must be whole blocks of 32. */
export function hasOneRow(format: i32, width: i32, blockSize: i32): i32 {
  if (format === CODEBOOK4 || format === CODEBOOK4_NESTED) return width % 32 === 0 && blockSize % 32 === 0 ? 1 : 0;
  return format === Q4_0 || format === Q4_1 || format === Q8_0 || format === Q4_K || format === Q6_K ? 1 : 0;
}

/** Task t: entries [t · taskColumns, ...) of c [out] = x [width] · Wᵀ. */
export function multiplyOneRow(x: usize, sums: usize, format: i32, parts: usize, width: i32, c: usize, columns: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const table = changetype<Parts>(parts);
  const end = least(columns, last * taskColumns);
  for (let n = first * taskColumns; n < end; n++) store<f32>(c + ((<usize>n) << 2), dotRow(format, table, <u32>n * width, width, x, sums));
}

function dotRow(format: i32, parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  const data = parts.data;
  switch (format) {
    case Q4_0:
      return dotQ4_0(data + 18 * (first / 32), width, x, sums);
    case Q4_1:
      return dotQ4_1(data + 20 * (first / 32), width, x, sums);
    case Q8_0:
      return dotQ8_0(data + 34 * (first / 32), width, x);
    case Q4_K:
      return dotQ4_K(data + 144 * (first / 256), width, x, sums);
    case Q6_K:
      return dotQ6_K(data + 210 * (first / 256), width, x);
    default:
      return dotCodebook(parts, format === CODEBOOK4_NESTED, first, width, x);
  }
}

/** sum + 16 signed bytes times 16 entries of x. */
// @ts-ignore: decorator
@inline
function dot16(bytes: v128, x: usize, sum: v128): v128 {
  const low = i16x8.extend_low_i8x16_s(bytes);
  const high = i16x8.extend_high_i8x16_s(bytes);
  sum = madd(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low)), v128.load(x), sum);
  sum = madd(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low)), v128.load(x, 16), sum);
  sum = madd(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high)), v128.load(x, 32), sum);
  return madd(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high)), v128.load(x, 48), sum);
}

/**
 * sum + 16 nibbles, each standing for a small integer, times 16 entries of x. Such integers fill only the upper two bytes
 * of a float: two byte lookups and two rounds of interleaving make floats of them, fewer instructions than conversion takes.
 */
// @ts-ignore: decorator
@inline
function dotNibbles(codes: v128, byte2: v128, byte3: v128, x: usize, sum: v128): v128 {
  const zero = i16x8.splat(0);
  const b2 = lookup(byte2, codes);
  const b3 = lookup(byte3, codes);
  const low = v128.shuffle<i8>(b2, b3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  sum = madd(v128.shuffle<i16>(zero, low, 0, 8, 1, 9, 2, 10, 3, 11), v128.load(x), sum);
  sum = madd(v128.shuffle<i16>(zero, low, 4, 12, 5, 13, 6, 14, 7, 15), v128.load(x, 16), sum);
  const high = v128.shuffle<i8>(b2, b3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  sum = madd(v128.shuffle<i16>(zero, high, 0, 8, 1, 9, 2, 10, 3, 11), v128.load(x, 32), sum);
  return madd(v128.shuffle<i16>(zero, high, 4, 12, 5, 13, 6, 14, 7, 15), v128.load(x, 48), sum);
}

/** Bytes 2 and 3 of the floats 0, 1, ... 15. */
// @ts-ignore: decorator
@inline
function unsigned2(): v128 {
  return i32x4(0x40008000, 0xe0c0a080, 0x30201000, 0x70605040);
}

// @ts-ignore: decorator
@inline
function unsigned3(): v128 {
  return i32x4(0x40403f00, 0x40404040, 0x41414141, 0x41414141);
}

/** 32 codes, four to a lane each 4 bits further up, times 32 entries of x that `spreadNibbles` has laid out. */
// @ts-ignore: decorator
@inline
function dotSpread(codes: v128, x: usize): v128 {
  let a = f32x4.mul(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf))), v128.load(x));
  let b = f32x4.mul(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf0))), v128.load(x, 16));
  a = madd(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf00))), v128.load(x, 32), a);
  b = madd(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf000))), v128.load(x, 48), b);
  a = madd(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf0000))), v128.load(x, 64), a);
  b = madd(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf00000))), v128.load(x, 80), b);
  a = madd(f32x4.convert_i32x4_s(v128.and(codes, i32x4.splat(0xf000000))), v128.load(x, 96), a);
  b = madd(f32x4.convert_i32x4_s(i32x4.shr_u(codes, 28)), v128.load(x, 112), b);
  return f32x4.add(a, b);
}

function dotQ4_0(at: usize, width: i32, x: usize, sums: usize): f32 {
  let total = f32x4.splat(0);
  const bias = f32x4.splat(-8);
  for (let i = 0; i < width; i += 32) {
    // Codes are 8 more than what they stand for.
    const sum = madd(bias, v128.load(sums), dotSpread(v128.load(at, 2), x));
    total = madd(f32x4.splat(half(at)), sum, total);
    at += 18;
    x += 128;
    sums += 16;
  }
  return laneSum(total);
}

function dotQ4_1(at: usize, width: i32, x: usize, sums: usize): f32 {
  let total = f32x4.splat(0);
  let offsets = total;
  for (let i = 0; i < width; i += 32) {
    const sum = dotSpread(v128.load(at, 4), x);
    // Scale and minimum, converted together.
    const pair = halves(v128.load16x4_u(at));
    total = madd(v128.shuffle<i32>(pair, pair, 0, 0, 0, 0), sum, total);
    offsets = madd(v128.shuffle<i32>(pair, pair, 1, 1, 1, 1), v128.load(sums), offsets);
    at += 20;
    x += 128;
    sums += 16;
  }
  return laneSum(f32x4.add(total, offsets));
}

function dotQ8_0(at: usize, width: i32, x: usize): f32 {
  const zero = f32x4.splat(0);
  let total = zero;
  for (let i = 0; i < width; i += 32) {
    const a = dot16(v128.load(at, 2), x, zero);
    const b = dot16(v128.load(at, 18), x + 64, zero);
    total = madd(f32x4.splat(half(at)), f32x4.add(a, b), total);
    at += 34;
    x += 128;
  }
  return laneSum(total);
}

function dotQ4_K(at: usize, width: i32, x: usize, sums: usize): f32 {
  const zero = f32x4.splat(0);
  let total = zero;
  for (let i = 0; i < width; i += 256) {
    const d = half(at);
    const dmin = -half(at + 2);
    const pairs = at + 4;
    let codes = at + 16;
    for (let j = 0; j < 8; j += 2) {
      const bytes0 = v128.load(codes);
      const bytes1 = v128.load(codes, 16);
      const low = f32x4.add(dotNibbles(lowNibbles(bytes0), unsigned2(), unsigned3(), x, zero), dotNibbles(lowNibbles(bytes1), unsigned2(), unsigned3(), x + 64, zero));
      const high = f32x4.add(dotNibbles(highNibbles(bytes0), unsigned2(), unsigned3(), x + 128, zero), dotNibbles(highNibbles(bytes1), unsigned2(), unsigned3(), x + 192, zero));
      total = madd(f32x4.splat(d * <f32>sixBitScale(pairs, j)), low, total);
      total = madd(f32x4.splat(dmin * <f32>sixBitMin(pairs, j)), v128.load(sums), total);
      total = madd(f32x4.splat(d * <f32>sixBitScale(pairs, j + 1)), high, total);
      total = madd(f32x4.splat(dmin * <f32>sixBitMin(pairs, j + 1)), v128.load(sums, 16), total);
      codes += 32;
      x += 256;
      sums += 32;
    }
    at += 144;
  }
  return laneSum(total);
}

function dotQ6_K(at: usize, width: i32, x: usize): f32 {
  const two = i8x16.splat(3);
  const bias = i8x16.splat(32);
  const zero = f32x4.splat(0);
  let total = zero;
  for (let i = 0; i < width; i += 256) {
    const d = half(at + 208);
    for (let h = 0; h < 2; h++) {
      for (let part = 0; part < 2; part++) {
        const ql = at + 64 * h + 16 * part;
        const first = v128.load(ql);
        const second = v128.load(ql, 32);
        const high = v128.load(at + 128 + 32 * h + 16 * part);
        const scales = at + 192 + 8 * h + part;
        const from = x + ((<usize>(128 * h + 16 * part)) << 2);
        const q0 = v128.or(lowNibbles(first), i16x8.shl(v128.and(high, two), 4));
        const q1 = v128.or(lowNibbles(second), i16x8.shl(v128.and(i16x8.shr_u(high, 2), two), 4));
        const q2 = v128.or(highNibbles(first), i8x16.shl(v128.and(highNibbles(high), two), 4));
        const q3 = v128.or(highNibbles(second), i16x8.shl(v128.and(i16x8.shr_u(high, 6), two), 4));
        total = madd(f32x4.splat(d * <f32>load<i8>(scales)), dot16(i8x16.sub(q0, bias), from, zero), total);
        total = madd(f32x4.splat(d * <f32>load<i8>(scales, 2)), dot16(i8x16.sub(q1, bias), from + 128, zero), total);
        total = madd(f32x4.splat(d * <f32>load<i8>(scales, 4)), dot16(i8x16.sub(q2, bias), from + 256, zero), total);
        total = madd(f32x4.splat(d * <f32>load<i8>(scales, 6)), dot16(i8x16.sub(q3, bias), from + 384, zero), total);
      }
    }
    at += 210;
    x += 1024;
  }
  return laneSum(total);
}

/** sum + 16 codebook values times 16 entries of x. */
// @ts-ignore: decorator
@inline
function dotLookup16(codes: v128, p0: v128, p1: v128, p2: v128, p3: v128, x: usize, sum: v128): v128 {
  const b0 = lookup(p0, codes);
  const b1 = lookup(p1, codes);
  const b2 = lookup(p2, codes);
  const b3 = lookup(p3, codes);
  const low01 = v128.shuffle<i8>(b0, b1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const low23 = v128.shuffle<i8>(b2, b3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  sum = madd(v128.shuffle<i16>(low01, low23, 0, 8, 1, 9, 2, 10, 3, 11), v128.load(x), sum);
  sum = madd(v128.shuffle<i16>(low01, low23, 4, 12, 5, 13, 6, 14, 7, 15), v128.load(x, 16), sum);
  const high01 = v128.shuffle<i8>(b0, b1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const high23 = v128.shuffle<i8>(b2, b3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  sum = madd(v128.shuffle<i16>(high01, high23, 0, 8, 1, 9, 2, 10, 3, 11), v128.load(x, 32), sum);
  return madd(v128.shuffle<i16>(high01, high23, 4, 12, 5, 13, 6, 14, 7, 15), v128.load(x, 48), sum);
}

function dotCodebook(parts: Parts, nested: bool, first: u32, width: i32, x: usize): f32 {
  const planes = changetype<usize>(parts) + PLANES;
  const p0 = v128.load(planes);
  const p1 = v128.load(planes, 16);
  const p2 = v128.load(planes, 32);
  const p3 = v128.load(planes, 48);
  const zero = f32x4.splat(0);
  const size = parts.blockSize;
  let at = parts.data + (first >> 1);
  const end = first + width;
  let total = zero;
  let block = first / size;
  let blockEnd = (block + 1) * size;
  while (first < end) {
    const stop = blockEnd < end ? blockEnd : end;
    let a = zero;
    let b = zero;
    for (; first < stop; first += 32) {
      const bytes = v128.load(at);
      const high = highNibbles(bytes);
      const low = lowNibbles(bytes);
      a = dotLookup16(v128.shuffle<i8>(high, low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), p0, p1, p2, p3, x, a);
      b = dotLookup16(v128.shuffle<i8>(high, low, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), p0, p1, p2, p3, x + 64, b);
      at += 16;
      x += 128;
    }
    total = madd(f32x4.splat(blockScale(parts, nested, block)), f32x4.add(a, b), total);
    block += 1;
    blockEnd += size;
  }
  return laneSum(total);
}
