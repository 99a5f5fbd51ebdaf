/**
 * A few rows of x times packed rows in integers: x is rounded to codes of 16 or 8 bits with one scale for each 32 entries
 * (packages/tensor/src/ops/integer-matmul.ts says how), codes meet codes, and each block's sum is scaled once. Where W has
 * zeros or minima, w = scale · (code - zero) + minimum, the sums of x over a block stand in for them.
 */
import { AFFINE, AFFINE_SYMMETRIC, blockScale, CODEBOOK4, CODEBOOK4_NESTED, Parts, PLANES, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, sixBitMin, sixBitScale } from './dequant';
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

// @ts-ignore: decorator
@inline
function isAffine(format: i32): bool {
  return format === AFFINE || format === AFFINE_SYMMETRIC;
}

// @ts-ignore: decorator
@inline
function isCodebook(format: i32): bool {
  return format === CODEBOOK4 || format === CODEBOOK4_NESTED;
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
  const four = takesPairs(format, table.bits) && <u32>width % table.blockSize === 0;
  for (let n = first * taskColumns; n < end;) {
    const entry = <u32>n * width;
    const together = four && n + 4 <= end;
    for (let m = 0; m < rows; m++) {
      const q = codes + m * codesStep;
      const s = scales + m * blocksStep;
      const t = sums + m * blocksStep;
      const out = c + ((<usize>(m * columns + n)) << 2);
      if (together) dotFour(bytes, format, table, entry, width, q, s, t, out);
      else store<f32>(out, RELAXED && bytes ? dotInBytes(format, table, entry, width, q, s, t) : dotInWords(format, table, entry, width, q, s, t));
    }
    n += together ? 4 : 1;
  }
}

function dotFour(bytes: i32, format: i32, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize, c: usize): void {
  if (RELAXED && bytes) {
    if (format === CODEBOOK4) dotPairs4(true, true, false, parts, first, width, q, s, t, c);
    else if (format === CODEBOOK4_NESTED) dotPairs4(true, true, true, parts, first, width, q, s, t, c);
    else dotPairs4(true, false, false, parts, first, width, q, s, t, c);
  } else if (format === CODEBOOK4) dotPairs4(false, true, false, parts, first, width, q, s, t, c);
  else if (format === CODEBOOK4_NESTED) dotPairs4(false, true, true, parts, first, width, q, s, t, c);
  else dotPairs4(false, false, false, parts, first, width, q, s, t, c);
}

function dotInBytes(format: i32, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  const data = parts.data;
  switch (format) {
    case CODEBOOK4:
      return dotPairs(true, true, false, parts, first, width, q, s, t);
    case CODEBOOK4_NESTED:
      return dotPairs(true, true, true, parts, first, width, q, s, t);
    case Q4_0:
      return dotBlocks(Q4_0, true, data + 18 * (first / 32), width, q, s, t);
    case Q4_1:
      return dotBlocks(Q4_1, true, data + 20 * (first / 32), width, q, s, t);
    case Q4_K:
      return dotQ4_K(true, data + 144 * (first / 256), width, q, s, t);
    case Q6_K:
      return dotQ6_K(true, data + 210 * (first / 256), width, q, s);
    default:
      return dotPairs(true, false, false, parts, first, width, q, s, t);
  }
}

function dotInWords(format: i32, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  const data = parts.data;
  switch (format) {
    case CODEBOOK4:
      return dotPairs(false, true, false, parts, first, width, q, s, t);
    case CODEBOOK4_NESTED:
      return dotPairs(false, true, true, parts, first, width, q, s, t);
    case Q4_0:
      return dotBlocks(Q4_0, false, data + 18 * (first / 32), width, q, s, t);
    case Q4_1:
      return dotBlocks(Q4_1, false, data + 20 * (first / 32), width, q, s, t);
    case Q8_0:
      return dotBlocks(Q8_0, false, data + 34 * (first / 32), width, q, s, t);
    case Q4_K:
      return dotQ4_K(false, data + 144 * (first / 256), width, q, s, t);
    case Q6_K:
      return dotQ6_K(false, data + 210 * (first / 256), width, q, s);
    default:
      return parts.bits === 8 ? dotAffine8(parts, first, width, q, s, t) : dotPairs(false, false, false, parts, first, width, q, s, t);
  }
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

/** The codes of one block of Q4_0, Q4_1 or Q8_0 times 32 entries of x. */
// @ts-ignore: decorator
@inline
function block32(format: i32, bytes: bool, at: usize, q: usize): v128 {
  if (format === Q8_0) return i32x4.add(signedWords(v128.load(at, 2), q), signedWords(v128.load(at, 18), q + 32));
  const codes = v128.load(format === Q4_1 ? at + 4 : at + 2);
  return nibbles(bytes, lowNibbles(codes), highNibbles(codes), q);
}

/** GGUF's blocks of 32, four at a time: their halves are converted together. */
// @ts-ignore: decorator
@inline
function dotBlocks(format: i32, bytes: bool, at: usize, width: i32, q: usize, s: usize, t: usize): f32 {
  const step: usize = format === Q4_0 ? 18 : format === Q4_1 ? 20 : 34;
  const stepX: usize = bytes ? 32 : 64;
  const zero = f32x4.splat(0);
  let total0 = zero;
  let total1 = zero;
  let offsets = zero;
  let i = 0;
  for (; i + 128 <= width; i += 128) {
    const words = i32x4(load<u32>(at), load<u32>(at + step), load<u32>(at + 2 * step), load<u32>(at + 3 * step));
    const d = halves(words);
    const scale = f32x4.mul(d, v128.load(s));
    if (format === Q4_0) offsets = madd(d, v128.load(t), offsets);
    total0 = madd(v128.shuffle<i32>(scale, scale, 0, 0, 0, 0), f32x4.convert_i32x4_s(block32(format, bytes, at, q)), total0);
    total1 = madd(v128.shuffle<i32>(scale, scale, 1, 1, 1, 1), f32x4.convert_i32x4_s(block32(format, bytes, at + step, q + stepX)), total1);
    total0 = madd(v128.shuffle<i32>(scale, scale, 2, 2, 2, 2), f32x4.convert_i32x4_s(block32(format, bytes, at + 2 * step, q + 2 * stepX)), total0);
    total1 = madd(v128.shuffle<i32>(scale, scale, 3, 3, 3, 3), f32x4.convert_i32x4_s(block32(format, bytes, at + 3 * step, q + 3 * stepX)), total1);
    if (format === Q4_1) offsets = madd(halves(i32x4.shr_u(words, 16)), v128.load(t), offsets);
    at += 4 * step;
    q += 4 * stepX;
    s += 16;
    t += 16;
  }
  let offset = laneSum(offsets);
  for (; i < width; i += 32) {
    const d = half(at);
    if (format === Q4_0) offset += d * load<f32>(t);
    if (format === Q4_1) offset += half(at + 2) * load<f32>(t);
    total0 = madd(f32x4.splat(d * load<f32>(s)), f32x4.convert_i32x4_s(block32(format, bytes, at, q)), total0);
    at += step;
    q += stepX;
    s += 4;
    t += 4;
  }
  const total = laneSum(f32x4.add(total0, total1));
  // Codes are 8 more than what they stand for.
  if (format === Q4_0) return total - 8 * offset;
  return total + offset;
}

/** A block of 32 as it is multiplied: codes of nibbles, or what a codebook has for them. */
// @ts-ignore: decorator
@inline
function pairs32(bytes: bool, book: bool, at: usize, p0: v128, p1: v128, q: usize): v128 {
  const codes = v128.load(at);
  const low = lowNibbles(codes);
  const high = highNibbles(codes);
  // The even entries are the low nibbles of integers, and the high ones of bitsandbytes' codes.
  if (!book) return nibbles(bytes, low, high, q);
  if (bytes) {
    return i32x4.add(i32x4.extadd_pairwise_i16x8_s(dotBytes(v128.load(q), lookup(p0, high))), i32x4.extadd_pairwise_i16x8_s(dotBytes(v128.load(q, 16), lookup(p0, low))));
  }
  return i32x4.add(lookupWords(high, p0, p1, q), lookupWords(low, p0, p1, q + 32));
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

/** Codebook (`book`) or affine codes of 4 bits, blocks of whole multiples of 32. */
// @ts-ignore: decorator
@inline
function dotPairs(bytes: bool, book: bool, nested: bool, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  const planes = changetype<usize>(parts) + PLANES;
  const p0 = v128.load(planes);
  const p1 = v128.load(planes, 16);
  const stepX: usize = bytes ? 32 : 64;
  const size = parts.blockSize;
  const zeros = book ? 0 : parts.zeros;
  const fixed: f32 = book ? (bytes ? 64 : 0) : 8;
  const end = first + width;
  let at = parts.data + (first >> 1);
  let total = f32x4.splat(0);
  let offset: f32 = 0;
  let block = first / size;
  let blockEnd = (block + 1) * size;
  while (first < end) {
    const stop = blockEnd < end ? blockEnd : end;
    let a = f32x4.splat(0);
    let b = a;
    let sum: f32 = 0;
    for (; first + 64 <= stop; first += 64) {
      a = madd(v128.load32_splat(s), f32x4.convert_i32x4_s(pairs32(bytes, book, at, p0, p1, q)), a);
      b = madd(v128.load32_splat(s, 4), f32x4.convert_i32x4_s(pairs32(bytes, book, at + 16, p0, p1, q + stepX)), b);
      if (!book || bytes) sum += load<f32>(t) + load<f32>(t, 4);
      at += 32;
      q += 2 * stepX;
      s += 8;
      t += 8;
    }
    if (first < stop) {
      a = madd(v128.load32_splat(s), f32x4.convert_i32x4_s(pairs32(bytes, book, at, p0, p1, q)), a);
      if (!book || bytes) sum += load<f32>(t);
      at += 16;
      q += stepX;
      s += 4;
      t += 4;
      first += 32;
    }
    const scale = scaleOf(parts, book, nested, block);
    total = madd(f32x4.splat(scale), f32x4.add(a, b), total);
    if (!book || bytes) offset += scale * (zeros === 0 ? fixed : <f32>load<u8>(zeros + block)) * sum;
    block += 1;
    blockEnd += size;
  }
  const dot = laneSum(total) - offset;
  return book ? parts.unit * dot : dot;
}

/**
 * `dotPairs` for four rows of W side by side, which share what is read of x. Only where rows are whole blocks.
 * @param c where the four results go, one after another
 */
// @ts-ignore: decorator
@inline
function dotPairs4(bytes: bool, book: bool, nested: bool, parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize, c: usize): void {
  const planes = changetype<usize>(parts) + PLANES;
  const p0 = v128.load(planes);
  const p1 = v128.load(planes, 16);
  const stepX: usize = bytes ? 32 : 64;
  const size = parts.blockSize;
  const zeros = book ? 0 : parts.zeros;
  const fixed: f32 = book ? (bytes ? 64 : 0) : 8;
  const rowBytes = <usize>(width >> 1);
  const blocks = <u32>width / size;
  let at = parts.data + (first >> 1);
  let block = first / size;
  let total0 = f32x4.splat(0);
  let total1 = total0;
  let total2 = total0;
  let total3 = total0;
  // One lane a row.
  let offsets = total0;
  for (let end = block + blocks; block < end; block++) {
    let a0 = f32x4.splat(0);
    let a1 = a0;
    let a2 = a0;
    let a3 = a0;
    let sum: f32 = 0;
    for (let left = size; left > 0; left -= 32) {
      const scale = v128.load32_splat(s);
      a0 = madd(scale, f32x4.convert_i32x4_s(pairs32(bytes, book, at, p0, p1, q)), a0);
      a1 = madd(scale, f32x4.convert_i32x4_s(pairs32(bytes, book, at + rowBytes, p0, p1, q)), a1);
      a2 = madd(scale, f32x4.convert_i32x4_s(pairs32(bytes, book, at + 2 * rowBytes, p0, p1, q)), a2);
      a3 = madd(scale, f32x4.convert_i32x4_s(pairs32(bytes, book, at + 3 * rowBytes, p0, p1, q)), a3);
      if (!book || bytes) sum += load<f32>(t);
      at += 16;
      q += stepX;
      s += 4;
      t += 4;
    }
    const scales = f32x4(
      scaleOf(parts, book, nested, block),
      scaleOf(parts, book, nested, block + blocks),
      scaleOf(parts, book, nested, block + 2 * blocks),
      scaleOf(parts, book, nested, block + 3 * blocks),
    );
    total0 = madd(v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), a0, total0);
    total1 = madd(v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), a1, total1);
    total2 = madd(v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), a2, total2);
    total3 = madd(v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), a3, total3);
    if (book && !bytes) continue;
    const zero =
      zeros === 0
        ? f32x4.splat(fixed)
        : f32x4.convert_i32x4_s(i32x4(load<u8>(zeros + block), load<u8>(zeros + block + blocks), load<u8>(zeros + block + 2 * blocks), load<u8>(zeros + block + 3 * blocks)));
    offsets = madd(f32x4.mul(scales, zero), f32x4.splat(sum), offsets);
  }
  const sums = f32x4.sub(f32x4(laneSum(total0), laneSum(total1), laneSum(total2), laneSum(total3)), offsets);
  v128.store(c, book ? f32x4.mul(f32x4.splat(parts.unit), sums) : sums);
}

// @ts-ignore: decorator
@inline
function scaleOf(parts: Parts, book: bool, nested: bool, block: u32): f32 {
  return book ? blockScale(parts, nested, block) : load<f32>(parts.scales + ((<usize>block) << 2));
}

function dotAffine8(parts: Parts, first: u32, width: i32, q: usize, s: usize, t: usize): f32 {
  const size = parts.blockSize;
  const zeros = parts.zeros;
  const end = first + width;
  let at = parts.data + first;
  let total = f32x4.splat(0);
  let offset: f32 = 0;
  let group = first / size;
  while (first < end) {
    const stop = first + size;
    let a = f32x4.splat(0);
    let sum: f32 = 0;
    for (; first < stop; first += 32) {
      const dot = i32x4.add(unsignedWords(v128.load(at), q), unsignedWords(v128.load(at, 16), q + 32));
      a = madd(v128.load32_splat(s), f32x4.convert_i32x4_s(dot), a);
      sum += load<f32>(t);
      at += 32;
      q += 64;
      s += 4;
      t += 4;
    }
    const scale = load<f32>(parts.scales + ((<usize>group) << 2));
    const zero: f32 = zeros === 0 ? 128 : <f32>load<u8>(zeros + group);
    total = madd(f32x4.splat(scale), a, total);
    offset += scale * zero * sum;
    group += 1;
  }
  return laneSum(total) - offset;
}

// @ts-ignore: decorator
@inline
function dotQ4_K(bytes: bool, at: usize, width: i32, q: usize, s: usize, t: usize): f32 {
  const stepX: usize = bytes ? 32 : 64;
  let total0 = f32x4.splat(0);
  let total1 = total0;
  let offset: f32 = 0;
  for (let i = 0; i < width; i += 256) {
    const d = half(at);
    const dmin = half(at + 2);
    const pairs = at + 4;
    let codes = at + 16;
    for (let j = 0; j < 8; j += 2) {
      const bytes0 = v128.load(codes);
      const bytes1 = v128.load(codes, 16);
      const low = nibbles(bytes, lowNibbles(bytes0), lowNibbles(bytes1), q);
      const high = nibbles(bytes, highNibbles(bytes0), highNibbles(bytes1), q + stepX);
      total0 = madd(f32x4.splat(d * <f32>sixBitScale(pairs, j) * load<f32>(s)), f32x4.convert_i32x4_s(low), total0);
      total1 = madd(f32x4.splat(d * <f32>sixBitScale(pairs, j + 1) * load<f32>(s, 4)), f32x4.convert_i32x4_s(high), total1);
      offset += dmin * (<f32>sixBitMin(pairs, j) * load<f32>(t) + <f32>sixBitMin(pairs, j + 1) * load<f32>(t, 4));
      codes += 32;
      q += 2 * stepX;
      s += 8;
      t += 8;
    }
    at += 144;
  }
  return laneSum(f32x4.add(total0, total1)) - offset;
}

/** 16 codes of Q6_K, 32 more than what they stand for, times 16 entries of x. */
// @ts-ignore: decorator
@inline
function sixBits(bytes: bool, codes: v128, q: usize): v128 {
  const bias = i8x16.splat(32);
  if (!bytes) return signedWords(i8x16.sub(codes, bias), q);
  const x = v128.load(q);
  return i32x4.extadd_pairwise_i16x8_s(i16x8.sub(dotBytes(x, codes), dotBytes(x, bias)));
}

/** Scales are for 16 entries, two to a scale of x. */
// @ts-ignore: decorator
@inline
function dotQ6_K(bytes: bool, at: usize, width: i32, q: usize, s: usize): f32 {
  const stepX: usize = bytes ? 32 : 64;
  const two = i8x16.splat(3);
  let total = f32x4.splat(0);
  for (let i = 0; i < width; i += 256) {
    let sum = f32x4.splat(0);
    for (let h = 0; h < 2; h++) {
      for (let part = 0; part < 2; part++) {
        const ql = at + 64 * h + 16 * part;
        const first = v128.load(ql);
        const second = v128.load(ql, 32);
        const high = v128.load(at + 128 + 32 * h + 16 * part);
        const scales = at + 192 + 8 * h + part;
        const from = q + 4 * h * stepX + part * (stepX >> 1);
        const q0 = v128.or(lowNibbles(first), i16x8.shl(v128.and(high, two), 4));
        const q1 = v128.or(lowNibbles(second), i16x8.shl(v128.and(i16x8.shr_u(high, 2), two), 4));
        const q2 = v128.or(highNibbles(first), i8x16.shl(v128.and(highNibbles(high), two), 4));
        const q3 = v128.or(highNibbles(second), i16x8.shl(v128.and(i16x8.shr_u(high, 6), two), 4));
        const x = s + (h << 4);
        sum = madd(f32x4.splat(<f32>load<i8>(scales) * load<f32>(x)), f32x4.convert_i32x4_s(sixBits(bytes, q0, from)), sum);
        sum = madd(f32x4.splat(<f32>load<i8>(scales, 2) * load<f32>(x, 4)), f32x4.convert_i32x4_s(sixBits(bytes, q1, from + stepX)), sum);
        sum = madd(f32x4.splat(<f32>load<i8>(scales, 4) * load<f32>(x, 8)), f32x4.convert_i32x4_s(sixBits(bytes, q2, from + 2 * stepX)), sum);
        sum = madd(f32x4.splat(<f32>load<i8>(scales, 6) * load<f32>(x, 12)), f32x4.convert_i32x4_s(sixBits(bytes, q3, from + 3 * stepX)), sum);
      }
    }
    total = madd(f32x4.splat(half(at + 208)), sum, total);
    at += 210;
    q += 8 * stepX;
    s += 32;
  }
  return laneSum(total);
}
