/**
 * A few rows of x times packed rows in integers: x is rounded to codes of 16 or 8 bits with one scale for each 32 entries
 * (packages/tensor/src/ops/integer-matmul.ts says how), codes meet codes, and each block's sum is scaled once. Where W has
 * zeros or minima, w = scale · (code - zero) + minimum, the sums of x over a block stand in for them. Rows of W are read one
 * after another: machines fetch ahead of one stream, not of several short ones.
 */
import { codesAt, fourOffsets, fourScales, fourWords, hasFour, isAffine, isCodebook, runBytes, runOffset, runScale } from './blocks';
import { AFFINE, CODEBOOK4, CODEBOOK4_NESTED, Parts, PLANES, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, sixBitCodes, sixBitMins, sixBitScales } from './dequant';
import { half, halves } from './half';
import { dotBytes, highNibbles, laneMax, laneSum, least, lookup, lowNibbles, madd } from './lanes';
import { RELAXED } from './variant';

/** Whether x of 8 bits is kept in bytes: codes of W below 128, and an instruction for them. Else it lies in 16 bits. */
export function takesBytes(format: i32, bits: i32): i32 {
  return RELAXED && format !== Q8_0 && !(isAffine(format) && bits === 8) ? 1 : 0;
}

/** Whether a byte of W holds two neighbors, so that x comes as the 16 even entries of a block and then the odd ones. */
export function takesPairs(format: i32, bits: i32): i32 {
  return isCodebook(format) || (isAffine(format) && bits === 4) ? 1 : 0;
}

/** Blocks whose largest entry is below 2^-100 count as zeros: their scale's inverse would not be finite. */
const LEAST: f32 = 7.888609052210118e-31;

/** Task t: block t of 32 entries of x to codes of at most `levels`; its scale to scales[t], scale · sum of codes to sums[t]. */
export function quantizeActivations(x: usize, levels: f32, bytes: i32, pairs: i32, codes: usize, scales: usize, sums: usize, first: i32, last: i32, scratch: usize): void {
  const step: usize = bytes ? 32 : 64;
  for (let block = first; block < last; block++) {
    const from = x + ((<usize>block) << 7);
    let largest = f32x4.abs(v128.load(from));
    for (let i: usize = 16; i < 128; i += 16) largest = f32x4.max(largest, f32x4.abs(v128.load(from + i)));
    const most = laneMax(largest);
    // A NaN is not below.
    const zero = most < LEAST;
    const scale: f32 = zero ? 0 : most / levels;
    const inverse = f32x4.splat(zero ? 0 : levels / most);
    let w0 = i16x8.narrow_i32x4_s(rounded(from, inverse), rounded(from + 16, inverse));
    let w1 = i16x8.narrow_i32x4_s(rounded(from + 32, inverse), rounded(from + 48, inverse));
    let w2 = i16x8.narrow_i32x4_s(rounded(from + 64, inverse), rounded(from + 80, inverse));
    let w3 = i16x8.narrow_i32x4_s(rounded(from + 96, inverse), rounded(from + 112, inverse));
    const sum = i32x4.add(
      i32x4.add(i32x4.extadd_pairwise_i16x8_s(w0), i32x4.extadd_pairwise_i16x8_s(w1)),
      i32x4.add(i32x4.extadd_pairwise_i16x8_s(w2), i32x4.extadd_pairwise_i16x8_s(w3)),
    );
    const at = (<usize>block) << 2;
    store<f32>(scales + at, scale);
    store<f32>(sums + at, scale * <f32>laneSumInt(sum));
    if (pairs) {
      const even = v128.shuffle<i16>(w0, w1, 0, 2, 4, 6, 8, 10, 12, 14);
      const odd = v128.shuffle<i16>(w0, w1, 1, 3, 5, 7, 9, 11, 13, 15);
      w1 = v128.shuffle<i16>(w2, w3, 0, 2, 4, 6, 8, 10, 12, 14);
      w3 = v128.shuffle<i16>(w2, w3, 1, 3, 5, 7, 9, 11, 13, 15);
      w0 = even;
      w2 = odd;
    }
    const to = codes + block * step;
    if (bytes) {
      v128.store(to, i8x16.narrow_i16x8_s(w0, w1));
      v128.store(to, i8x16.narrow_i16x8_s(w2, w3), 16);
    } else {
      v128.store(to, w0);
      v128.store(to, w1, 16);
      v128.store(to, w2, 32);
      v128.store(to, w3, 48);
    }
  }
}

// @ts-ignore: decorator
@inline
function rounded(at: usize, inverse: v128): v128 {
  return i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(v128.load(at), inverse)));
}

// @ts-ignore: decorator
@inline
function laneSumInt(v: v128): i32 {
  return i32x4.extract_lane(v, 0) + i32x4.extract_lane(v, 1) + (i32x4.extract_lane(v, 2) + i32x4.extract_lane(v, 3));
}

/** Task t: columns [t · taskColumns, ...) of c [rows, columns] = x [rows, width] · Wᵀ, x as `quantizeActivations` writes it. */
export function multiplyIntegers(
  codes: usize,
  scales: usize,
  sums: usize,
  bytes: i32,
  format: i32,
  parts: usize,
  width: i32,
  rows: i32,
  c: usize,
  columns: i32,
  taskColumns: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const table = changetype<Parts>(parts);
  const end = least(columns, last * taskColumns);
  const codesStep = <usize>(bytes ? width : width << 1);
  const blocksStep = <usize>(width >> 3);
  for (let n = first * taskColumns; n < end; n++) {
    for (let m = 0; m < rows; m++) {
      const q = codes + m * codesStep;
      const s = scales + m * blocksStep;
      const t = sums + m * blocksStep;
      const entry = <u32>n * width;
      store<f32>(c + ((<usize>(m * columns + n)) << 2), RELAXED && bytes ? dotInBytes(format, table, entry, width, q, s, t) : dotInWords(format, table, entry, width, q, s, t));
    }
  }
}

function dotInBytes(format: i32, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  if (format === CODEBOOK4) return bytesCodebook(parts, first, width, q, s, t);
  if (format === CODEBOOK4_NESTED) return bytesNestedCodebook(parts, first, width, q, s, t);
  if (format === Q4_0) return bytesQ4_0(parts, first, width, q, s, t);
  if (format === Q4_1) return bytesQ4_1(parts, first, width, q, s, t);
  if (format === Q4_K) return bytesQ4_K(parts, first, width, q, s, t);
  if (format === Q6_K) return bytesQ6_K(parts, first, width, q, s, t);
  return bytesAffine4(parts, first, width, q, s, t);
}

function dotInWords(format: i32, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  if (format === CODEBOOK4) return wordsCodebook(parts, first, width, q, s, t);
  if (format === CODEBOOK4_NESTED) return wordsNestedCodebook(parts, first, width, q, s, t);
  if (format === Q4_0) return wordsQ4_0(parts, first, width, q, s, t);
  if (format === Q4_1) return wordsQ4_1(parts, first, width, q, s, t);
  if (format === Q8_0) return wordsQ8_0(parts, first, width, q, s, t);
  if (format === Q4_K) return wordsQ4_K(parts, first, width, q, s, t);
  if (format === Q6_K) return wordsQ6_K(parts, first, width, q, s, t);
  return parts.bits === 4 ? wordsAffine4(parts, first, width, q, s, t) : wordsAffine8(parts, first, width, q, s, t);
}

/**
 * Exported, as each is to stay a function of its own: engines allot registers for a whole function at a time. Where there is no
 * instruction for bytes, a function for them is that for words, and the compiler drops it.
 */
export function bytesCodebook(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(CODEBOOK4, 4, RELAXED, parts, first, width, q, s, t);
}

export function bytesNestedCodebook(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(CODEBOOK4_NESTED, 4, RELAXED, parts, first, width, q, s, t);
}

export function bytesAffine4(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(AFFINE, 4, RELAXED, parts, first, width, q, s, t);
}

export function bytesQ4_0(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(Q4_0, 4, RELAXED, parts, first, width, q, s, t);
}

export function bytesQ4_1(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(Q4_1, 4, RELAXED, parts, first, width, q, s, t);
}

export function bytesQ4_K(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotQ4_K(RELAXED, parts, first, width, q, s, t);
}

export function bytesQ6_K(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotQ6_K(RELAXED, parts, first, width, q, s, t);
}

export function wordsCodebook(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(CODEBOOK4, 4, false, parts, first, width, q, s, t);
}

export function wordsNestedCodebook(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(CODEBOOK4_NESTED, 4, false, parts, first, width, q, s, t);
}

export function wordsAffine4(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(AFFINE, 4, false, parts, first, width, q, s, t);
}

export function wordsAffine8(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(AFFINE, 8, false, parts, first, width, q, s, t);
}

export function wordsQ4_0(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(Q4_0, 4, false, parts, first, width, q, s, t);
}

export function wordsQ4_1(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(Q4_1, 4, false, parts, first, width, q, s, t);
}

export function wordsQ8_0(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotRuns(Q8_0, 8, false, parts, first, width, q, s, t);
}

export function wordsQ4_K(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotQ4_K(false, parts, first, width, q, s, t);
}

export function wordsQ6_K(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  return dotQ6_K(false, parts, first, width, q, s, t);
}

/** 16 codes, unsigned bytes, times 16 words of x. */
// @ts-ignore: decorator
@inline
function unsignedWords(codes: v128, q: usize): v128 {
  return i32x4.add(i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_u(codes), v128.load(q)), i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_u(codes), v128.load(q, 16)));
}

/** 16 codes, signed bytes, times 16 words of x. */
// @ts-ignore: decorator
@inline
function signedWords(codes: v128, q: usize): v128 {
  return i32x4.add(i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(codes), v128.load(q)), i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(codes), v128.load(q, 16)));
}

/** Two times 16 codes below 16 times 32 entries of x. Four products of 15 · 127 fit 16 bits. */
// @ts-ignore: decorator
@inline
function nibbles(bytes: bool, low: v128, high: v128, q: usize): v128 {
  if (bytes) return i32x4.extadd_pairwise_i16x8_s(i16x8.add(dotBytes(v128.load(q), low), dotBytes(v128.load(q, 16), high)));
  return i32x4.add(unsignedWords(low, q), unsignedWords(high, q + 32));
}

/** 32 codes, or what a rounded codebook has for them, times 32 entries of x. */
// @ts-ignore: decorator
@inline
function dotCodes(format: i32, bits: i32, bytes: bool, at: usize, p0: v128, p1: v128, q: usize): v128 {
  if (format === Q8_0) return i32x4.add(signedWords(v128.load(at), q), signedWords(v128.load(at, 16), q + 32));
  if (bits === 8) return i32x4.add(unsignedWords(v128.load(at), q), unsignedWords(v128.load(at, 16), q + 32));
  const codes = v128.load(at);
  // The even entries are the low nibbles of integers, and the high ones of bitsandbytes' codes.
  if (!isCodebook(format)) return nibbles(bytes, lowNibbles(codes), highNibbles(codes), q);
  const even = highNibbles(codes);
  const odd = lowNibbles(codes);
  if (!bytes) return i32x4.add(lookupWords(even, p0, p1, q), lookupWords(odd, p0, p1, q + 32));
  return i32x4.add(i32x4.extadd_pairwise_i16x8_s(dotBytes(v128.load(q), lookup(p0, even))), i32x4.extadd_pairwise_i16x8_s(dotBytes(v128.load(q, 16), lookup(p0, odd))));
}

/** 16 codebook values of 16 bits times 16 words of x. */
// @ts-ignore: decorator
@inline
function lookupWords(codes: v128, p0: v128, p1: v128, q: usize): v128 {
  const b0 = lookup(p0, codes);
  const b1 = lookup(p1, codes);
  const low = v128.shuffle<i8>(b0, b1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const high = v128.shuffle<i8>(b0, b1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return i32x4.add(i32x4.dot_i16x8_s(low, v128.load(q)), i32x4.dot_i16x8_s(high, v128.load(q, 16)));
}

/** total + scale times the product of a run. */
// @ts-ignore: decorator
@inline
function addRun(format: i32, bits: i32, bytes: bool, at: usize, p0: v128, p1: v128, q: usize, scale: v128, total: v128): v128 {
  return madd(scale, f32x4.convert_i32x4_s(dotCodes(format, bits, bytes, at + codesAt(format), p0, p1, q)), total);
}

/** A row of a format whose codes come in runs of 32, four at a time: their scales are read together, and their sums do not wait for one another. */
// @ts-ignore: decorator
@inline
function dotRuns(format: i32, bits: i32, bytes: bool, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  const planes = changetype<usize>(parts) + PLANES;
  const p0 = v128.load(planes);
  const p1 = v128.load(planes, 16);
  const step = runBytes(format, bits);
  const stepX: usize = bytes ? 32 : 64;
  // A codebook has no offset of its own, but its bytes are 64 more than what they stand for.
  const moved = isCodebook(format) ? bytes : format !== Q8_0;
  const zero = f32x4.splat(0);
  let at = parts.data + (first >> 5) * step;
  let total0 = zero;
  let total1 = zero;
  let offsets = zero;
  const end = first + width;
  const endOfFours = hasFour(format, parts, width) ? first + (width & ~127) : first;
  for (; first < endOfFours; first += 128) {
    const words = fourWords(format, at);
    let scales = fourScales(format, parts, first, words);
    if (moved) offsets = madd(fourOffsets(format, bits, parts, first, words, scales), v128.load(t), offsets);
    scales = f32x4.mul(scales, v128.load(s));
    if (bytes) {
      total0 = addRun(format, bits, bytes, at, p0, p1, q, v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), total0);
      total1 = addRun(format, bits, bytes, at + step, p0, p1, q + stepX, v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), total1);
      total0 = addRun(format, bits, bytes, at + 2 * step, p0, p1, q + 2 * stepX, v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), total0);
      total1 = addRun(format, bits, bytes, at + 3 * step, p0, p1, q + 3 * stepX, v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), total1);
      at += 4 * step;
      q += 4 * stepX;
    } else {
      // Two by two, as the words of x that meet four runs do not fit the registers.
      for (let two = 0; two < 2; two++) {
        total0 = addRun(format, bits, bytes, at, p0, p1, q, v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), total0);
        total1 = addRun(format, bits, bytes, at + step, p0, p1, q + stepX, v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), total1);
        scales = v128.shuffle<i32>(scales, scales, 2, 3, 0, 1);
        at += 2 * step;
        q += 2 * stepX;
      }
    }
    s += 16;
    t += 16;
  }
  let offset = laneSum(offsets);
  for (; first < end; first += 32) {
    const scale = runScale(format, parts, first, at);
    if (moved) offset += runOffset(format, bits, parts, first, at, scale) * load<f32>(t);
    total0 = addRun(format, bits, bytes, at, p0, p1, q, f32x4.splat(scale * load<f32>(s)), total0);
    at += step;
    q += stepX;
    s += 4;
    t += 4;
  }
  const total = laneSum(f32x4.add(total0, total1));
  const dot = moved ? total + offset : total;
  return isCodebook(format) ? parts.unit * dot : dot;
}

// @ts-ignore: decorator
@inline
function dotQ4_K(bytes: bool, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  let at = parts.data + 144 * (first / 256);
  const stepX: usize = bytes ? 32 : 64;
  let total0 = f32x4.splat(0);
  let total1 = total0;
  let offsets = total0;
  for (let i = 0; i < width; i += 256) {
    const pair = halves(v128.load16x4_u(at));
    const d = v128.shuffle<i32>(pair, pair, 0, 0, 0, 0);
    const dmin = v128.shuffle<i32>(pair, pair, 1, 1, 1, 1);
    let codes = at + 16;
    for (let h = 0; h < 2; h++) {
      const scales = f32x4.mul(f32x4.mul(d, sixBitScales(at + 4, h)), v128.load(s));
      offsets = madd(f32x4.mul(dmin, sixBitMins(at + 4, h)), v128.load(t), offsets);
      const bytes0 = v128.load(codes);
      const bytes1 = v128.load(codes, 16);
      const bytes2 = v128.load(codes, 32);
      const bytes3 = v128.load(codes, 48);
      total0 = madd(v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), f32x4.convert_i32x4_s(nibbles(bytes, lowNibbles(bytes0), lowNibbles(bytes1), q)), total0);
      total1 = madd(v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), f32x4.convert_i32x4_s(nibbles(bytes, highNibbles(bytes0), highNibbles(bytes1), q + stepX)), total1);
      total0 = madd(v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), f32x4.convert_i32x4_s(nibbles(bytes, lowNibbles(bytes2), lowNibbles(bytes3), q + 2 * stepX)), total0);
      total1 = madd(v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), f32x4.convert_i32x4_s(nibbles(bytes, highNibbles(bytes2), highNibbles(bytes3), q + 3 * stepX)), total1);
      codes += 64;
      q += 4 * stepX;
      s += 16;
      t += 16;
    }
    at += 144;
  }
  return laneSum(f32x4.sub(f32x4.add(total0, total1), offsets));
}

/** 16 codes of Q6_K, 32 more than what they stand for, times 16 entries of x. */
// @ts-ignore: decorator
@inline
function sixBits(bytes: bool, codes: v128, q: usize): v128 {
  const bias = i8x16.splat(32);
  if (!bytes) return f32x4.convert_i32x4_s(signedWords(i8x16.sub(codes, bias), q));
  const x = v128.load(q);
  return f32x4.convert_i32x4_s(i32x4.extadd_pairwise_i16x8_s(i16x8.sub(dotBytes(x, codes), dotBytes(x, bias))));
}

/** Scales are for 16 entries, two to a scale of x. */
// @ts-ignore: decorator
@inline
function dotQ6_K(bytes: bool, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  let at = parts.data + 210 * (first / 256);
  const stepX: usize = bytes ? 32 : 64;
  let total = f32x4.splat(0);
  for (let i = 0; i < width; i += 256) {
    let sum0 = f32x4.splat(0);
    let sum1 = sum0;
    for (let h = 0; h < 2; h++) {
      const pairs = v128.load8x8_s(at + 192 + (h << 3));
      for (let part = 0; part < 2; part++) {
        const ql = at + 64 * h + 16 * part;
        const low0 = v128.load(ql);
        const low1 = v128.load(ql, 32);
        const high = v128.load(at + 128 + 32 * h + 16 * part);
        const from = q + 4 * h * stepX + part * (stepX >> 1);
        const scales = f32x4.mul(f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(pairs, part ? 0 : 16), 16)), v128.load(s + (h << 4)));
        sum0 = madd(v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), sixBits(bytes, sixBitCodes(low0, high), from), sum0);
        sum1 = madd(v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), sixBits(bytes, sixBitCodes(low1, i16x8.shr_u(high, 2)), from + stepX), sum1);
        sum0 = madd(v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), sixBits(bytes, sixBitCodes(i16x8.shr_u(low0, 4), i16x8.shr_u(high, 4)), from + 2 * stepX), sum0);
        sum1 = madd(v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), sixBits(bytes, sixBitCodes(i16x8.shr_u(low1, 4), i16x8.shr_u(high, 6)), from + 3 * stepX), sum1);
      }
    }
    total = madd(f32x4.splat(half(at + 208)), f32x4.add(sum0, sum1), total);
    at += 210;
    q += 8 * stepX;
    s += 32;
  }
  return laneSum(total);
}
