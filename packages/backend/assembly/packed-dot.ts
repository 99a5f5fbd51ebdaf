/**
 * One row of x times packed rows, the case of generation: codes are multiplied as they are, and each block's scale is
 * applied once to its sum. w = scale · code + offset gives Σ w·x = scale · Σ code·x + offset · Σ x, and the sums of x over
 * 32 entries are the same for every row of W, so they come in computed. Rows of W are read one after another: machines fetch
 * ahead of one stream, not of several short ones.
 */
import { codesAt, fourOffsets, fourScales, fourWords, hasFour, isAffine, isCodebook, runBytes, runOffset, runScale } from './blocks';
import { AFFINE, blockScale, CODEBOOK4, CODEBOOK4_NESTED, Parts, PLANES, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, sixBitCodes, sixBitMins, sixBitScales } from './dequant';
import { half, halves } from './half';
import { highNibbles, laneSum, least, lookup, lowNibbles, madd } from './lanes';
import { transpose4 } from './packing';

/**
 * Whether codes are multiplied where they lie in the 32-bit lanes of a vector, two of each lane masked in place, then all
 * moved down by two: x then comes as `spreadRow` writes it.
 */
export function takesSpread(format: i32): i32 {
  return isCodebook(format) || format === Q6_K ? 0 : 1;
}

/**
 * Task t: of the 64 entries of x [width] from 64·t on the sum of each 32, and the entries in the order in which codes turn up;
 * what meets the upper one of two codes is divided by what that one is too large by.
 */
export function spreadRow(x: usize, width: i32, format: i32, bits: i32, out: usize, sums: usize, first: i32, last: i32, scratch: usize): void {
  const bytes = format === Q8_0 || (isAffine(format) && bits === 8);
  const codeBits: i32 = bytes ? 8 : isAffine(format) ? bits : 4;
  const worth = f32x4.splat(<f32>1 / <f32>(1 << codeBits));
  for (let task = first; task < last; task++) {
    const end = least(width, (task + 1) << 6);
    for (let i = task << 6; i < end; i += 32) {
      const from = x + ((<usize>i) << 2);
      const to = out + ((<usize>i) << 2);
      let sum = v128.load(from);
      for (let k = 16; k < 128; k += 16) sum = f32x4.add(sum, v128.load(from + k));
      store<f32>(sums + (i >> 3), laneSum(sum));
      if (isAffine(format) && !bytes) {
        // Eight neighbors to a lane.
        transpose4(from, from + 32, from + 64, from + 96, to, 16);
        transpose4(from + 16, from + 48, from + 80, from + 112, to + 64, 16);
      } else {
        // Four bytes to a lane. Of their nibbles the upper ones are the next 16 entries, or in Q4_K those of the next run.
        const stride: usize = bytes ? 16 : 32;
        const start = format === Q4_K && (i & 32) !== 0 ? to - 112 : to;
        transpose4(from, from + 16, from + 32, from + 48, start, stride);
        transpose4(from + 64, from + 80, from + 96, from + 112, start + (bytes ? 64 : format === Q4_K ? 128 : 16), stride);
      }
    }
    for (let i = (task << 6) + 4; i < end; i += 8) {
      const at = out + ((<usize>i) << 2);
      v128.store(at, f32x4.mul(v128.load(at), worth));
    }
  }
}

/** Whether `multiplyOneRow` takes a format: rows and blocks of whole runs of 32. */
export function hasOneRow(format: i32, width: i32, blockSize: i32): i32 {
  if (isCodebook(format) || isAffine(format)) return width % 32 === 0 && blockSize % 32 === 0 ? 1 : 0;
  return format === Q4_0 || format === Q4_1 || format === Q8_0 || format === Q4_K || format === Q6_K ? 1 : 0;
}

/** Task t: entries [t · taskColumns, ...) of c [out] = x [width] · Wᵀ. */
export function multiplyOneRow(x: usize, sums: usize, format: i32, parts: usize, width: i32, c: usize, columns: i32, taskColumns: i32, first: i32, last: i32, scratch: usize): void {
  const table = changetype<Parts>(parts);
  const end = least(columns, last * taskColumns);
  for (let n = first * taskColumns; n < end; n++) store<f32>(c + ((<usize>n) << 2), dotRow(format, table, <u32>n * width, width, x, sums));
}

function dotRow(format: i32, parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  if (isCodebook(format)) return dotCodebook(parts, first, width, x);
  if (format === Q4_0) return dotQ4_0(parts, first, width, x, sums);
  if (format === Q4_1) return dotQ4_1(parts, first, width, x, sums);
  if (format === Q8_0) return dotQ8_0(parts, first, width, x, sums);
  if (format === Q4_K) return dotQ4_K(parts, first, width, x, sums);
  if (format === Q6_K) return dotQ6_K(parts, first, width, x);
  if (parts.bits === 2) return dotAffine2(parts, first, width, x, sums);
  if (parts.bits === 3) return dotAffine3(parts, first, width, x, sums);
  return parts.bits === 4 ? dotAffine4(parts, first, width, x, sums) : dotAffine8(parts, first, width, x, sums);
}

/** Exported, as each is to stay a function of its own: engines allot registers for a whole function at a time. */
export function dotAffine2(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(AFFINE, 2, parts, first, width, x, sums);
}

export function dotAffine3(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(AFFINE, 3, parts, first, width, x, sums);
}

export function dotAffine4(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(AFFINE, 4, parts, first, width, x, sums);
}

export function dotAffine8(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(AFFINE, 8, parts, first, width, x, sums);
}

export function dotQ4_0(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(Q4_0, 4, parts, first, width, x, sums);
}

export function dotQ4_1(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(Q4_1, 4, parts, first, width, x, sums);
}

export function dotQ8_0(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  return dotRuns(Q8_0, 8, parts, first, width, x, sums);
}

/** sum + the codes that `mask` leaves of every lane times four entries of x. */
// @ts-ignore: decorator
@inline
function dotMasked(codes: v128, mask: v128, x: usize, sum: v128): v128 {
  return madd(f32x4.convert_i32x4_s(v128.and(codes, mask)), v128.load(x), sum);
}

/** 32 affine codes of at most four bits, eight to a lane. */
// @ts-ignore: decorator
@inline
function loadCodes(bits: i32, at: usize): v128 {
  if (bits === 2) return v128.load16x4_u(at);
  if (bits === 4) return v128.load(at);
  // Three bytes to a lane, and none is read beyond the twelfth.
  const bytes = v128.load32_lane(at, v128.load64_zero(at), 2, 8);
  return v128.shuffle<i8>(bytes, i32x4.splat(0), 0, 1, 2, 16, 3, 4, 5, 16, 6, 7, 8, 16, 9, 10, 11, 16);
}

/** Past the two codes of each lane that were multiplied. */
// @ts-ignore: decorator
@inline
function moveDown(bits: i32, codes: v128): v128 {
  if (bits === 8) return i32x4.shr_u(codes, 16);
  if (bits === 2) return i32x4.shr_u(codes, 4);
  if (bits === 3) return i32x4.shr_u(codes, 6);
  return i32x4.shr_u(codes, 8);
}

/** 16 bytes or fewer of codes: a run of them, or half of one of 8 bits. Signed ones become 128 more than what they stand for. */
// @ts-ignore: decorator
@inline
function loadUnit(format: i32, bits: i32, at: usize): v128 {
  if (format === AFFINE && bits < 8) return loadCodes(bits, at);
  const codes = v128.load(at);
  return format === Q8_0 ? v128.xor(codes, i8x16.splat(-128)) : codes;
}

/**
 * A row of a format whose codes are multiplied where they lie. Two vectors of codes at a time: their sums do not wait for one
 * another, and with four of x they still fit the registers.
 */
// @ts-ignore: decorator
@inline
function dotRuns(format: i32, bits: i32, parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  const lower = i32x4.splat((1 << bits) - 1);
  const upper = i32x4.splat(((1 << bits) - 1) << bits);
  const halves = bits === 8;
  const step = runBytes(format, bits);
  const next: usize = halves ? 16 : step;
  const nextX: usize = halves ? 64 : 128;
  const codes = codesAt(format);
  let at = parts.data + (first >> 5) * step;
  let total = f32x4.splat(0);
  let offsets = total;
  const end = first + width;
  const endOfFours = hasFour(format, parts, width) ? first + (width & ~127) : first;
  for (; first < endOfFours; first += 128) {
    const words = fourWords(format, at);
    let scales = fourScales(format, parts, first, words);
    offsets = madd(fourOffsets(format, bits, parts, first, words, scales), v128.load(sums), offsets);
    for (let two = halves ? 4 : 2; two > 0; two--) {
      let codes0 = loadUnit(format, bits, at + codes);
      let codes1 = loadUnit(format, bits, at + codes + next);
      let a0 = f32x4.splat(0);
      let a1 = a0;
      let b0 = a0;
      let b1 = a0;
      for (let k = halves ? 2 : 4; k > 0; k--) {
        a0 = dotMasked(codes0, lower, x, a0);
        b0 = dotMasked(codes0, upper, x + 16, b0);
        a1 = dotMasked(codes1, lower, x + nextX, a1);
        b1 = dotMasked(codes1, upper, x + nextX + 16, b1);
        codes0 = moveDown(bits, codes0);
        codes1 = moveDown(bits, codes1);
        x += 32;
      }
      const scale = v128.shuffle<i32>(scales, scales, 0, 0, 0, 0);
      total = madd(scale, f32x4.add(a0, b0), total);
      total = madd(halves ? scale : v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), f32x4.add(a1, b1), total);
      scales = halves ? v128.shuffle<i32>(scales, scales, 1, 2, 3, 0) : v128.shuffle<i32>(scales, scales, 2, 3, 0, 1);
      at += halves ? step : 2 * step;
      x += nextX;
    }
    sums += 16;
  }
  let offset = laneSum(offsets);
  for (; first < end; first += 32) {
    let a = f32x4.splat(0);
    let b = a;
    for (let unit: usize = 0; unit < step - codes; unit += next) {
      let c = loadUnit(format, bits, at + codes + unit);
      for (let k = halves ? 2 : 4; k > 0; k--) {
        a = dotMasked(c, lower, x, a);
        b = dotMasked(c, upper, x + 16, b);
        c = moveDown(bits, c);
        x += 32;
      }
    }
    const scale = runScale(format, parts, first, at);
    total = madd(f32x4.splat(scale), f32x4.add(a, b), total);
    offset += runOffset(format, bits, parts, first, at, scale) * load<f32>(sums);
    at += step;
    sums += 4;
  }
  return laneSum(total) + offset;
}

export function dotQ4_K(parts: Parts, first: u32, width: i32, x: usize, sums: usize): f32 {
  let at = parts.data + 144 * (first / 256);
  const lower = i32x4.splat(15);
  const upper = i32x4.splat(15 << 4);
  let total = f32x4.splat(0);
  let offsets = total;
  for (let i = 0; i < width; i += 256) {
    const pair = halves(v128.load16x4_u(at));
    const d = v128.shuffle<i32>(pair, pair, 0, 0, 0, 0);
    const dmin = v128.shuffle<i32>(pair, pair, 1, 1, 1, 1);
    let codes = at + 16;
    for (let h = 0; h < 2; h++) {
      offsets = madd(f32x4.mul(dmin, sixBitMins(at + 4, h)), v128.load(sums), offsets);
      let scales = f32x4.mul(d, sixBitScales(at + 4, h));
      for (let p = 0; p < 2; p++) {
        // Lower nibbles are of one sub-block, upper ones of the next.
        let low = f32x4.splat(0);
        let high = low;
        for (let part = 0; part < 2; part++) {
          const c0 = v128.load(codes);
          const c1 = i32x4.shr_u(c0, 8);
          const c2 = i32x4.shr_u(c0, 16);
          const c3 = i32x4.shr_u(c0, 24);
          low = dotMasked(c0, lower, x, low);
          high = dotMasked(c0, upper, x + 16, high);
          low = dotMasked(c1, lower, x + 32, low);
          high = dotMasked(c1, upper, x + 48, high);
          low = dotMasked(c2, lower, x + 64, low);
          high = dotMasked(c2, upper, x + 80, high);
          low = dotMasked(c3, lower, x + 96, low);
          high = dotMasked(c3, upper, x + 112, high);
          codes += 16;
          x += 128;
        }
        total = madd(v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), low, total);
        total = madd(v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), high, total);
        scales = v128.shuffle<i32>(scales, scales, 2, 3, 0, 1);
      }
      sums += 16;
    }
    at += 144;
  }
  return laneSum(f32x4.sub(total, offsets));
}

export function dotQ6_K(parts: Parts, first: u32, width: i32, x: usize): f32 {
  let at = parts.data + 210 * (first / 256);
  let total = f32x4.splat(0);
  for (let i = 0; i < width; i += 256) {
    const d = f32x4.splat(half(at + 208));
    for (let h = 0; h < 2; h++) {
      const pairs = v128.load8x8_s(at + 192 + (h << 3));
      for (let part = 0; part < 2; part++) {
        const ql = at + 64 * h + 16 * part;
        const low0 = v128.load(ql);
        const low1 = v128.load(ql, 32);
        const high = v128.load(at + 128 + 32 * h + 16 * part);
        const from = x + ((<usize>(128 * h + 16 * part)) << 2);
        // Every other scale.
        const scales = f32x4.mul(d, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(pairs, part ? 0 : 16), 16)));
        total = madd(v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), dotSixBits(sixBitCodes(low0, high), from), total);
        total = madd(v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), dotSixBits(sixBitCodes(low1, i16x8.shr_u(high, 2)), from + 128), total);
        total = madd(v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), dotSixBits(sixBitCodes(i16x8.shr_u(low0, 4), i16x8.shr_u(high, 4)), from + 256), total);
        total = madd(v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), dotSixBits(sixBitCodes(i16x8.shr_u(low1, 4), i16x8.shr_u(high, 6)), from + 384), total);
      }
    }
    at += 210;
    x += 1024;
  }
  return laneSum(total);
}

/** 16 codes of Q6_K, 32 more than what they stand for, times 16 entries of x. */
// @ts-ignore: decorator
@inline
function dotSixBits(codes: v128, x: usize): v128 {
  const bytes = i8x16.sub(codes, i8x16.splat(32));
  const low = i16x8.extend_low_i8x16_s(bytes);
  const high = i16x8.extend_high_i8x16_s(bytes);
  let sum = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low)), v128.load(x));
  sum = madd(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low)), v128.load(x, 16), sum);
  sum = madd(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high)), v128.load(x, 32), sum);
  return madd(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high)), v128.load(x, 48), sum);
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

export function dotCodebook(parts: Parts, first: u32, width: i32, x: usize): f32 {
  const nested = parts.nestedMap !== 0;
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
