/**
 * Packed weights to floats, from the bytes of the file as they are: a run of elements at a time, never a matrix. Every
 * product and sum is rounded by itself (no fused multiply-add), so that an element has the same bits as in the reference
 * of packages/tensor/src/packed/layout.ts, in every build.
 */
import { half, halves } from './half';
import { highNibbles, lookup, lowNibbles } from './lanes';

/** Formats by number, in the order of the list in src/wasm/kernels/packed-matmul.ts. */
export const CODEBOOK4: i32 = 0;
export const CODEBOOK4_NESTED: i32 = 1;
const F16: i32 = 2;
const BF16: i32 = 3;
export const Q4_0: i32 = 4;
export const Q4_1: i32 = 5;
export const Q8_0: i32 = 6;
export const Q4_K: i32 = 7;
export const Q6_K: i32 = 8;
export const AFFINE: i32 = 9;
export const AFFINE_SYMMETRIC: i32 = 10;

/** Where, after the addresses, the codebook lies once more: byte 0 of all its 16 values, then their bytes 1, 2 and 3. */
export const PLANES: usize = 64;

/** Addresses of the stored parts, as the caller wrote them. */
@unmanaged
export class Parts {
  /** Blocks (GGUF) or codes (codebook). */
  data: usize;
  codebook: usize;
  absmax: usize;
  nestedMap: usize;
  nestedAbsmax: usize;
  nestedOffset: usize;
  /** Elements of one absmax or scale. */
  blockSize: u32;
  scales: usize;
  zeros: usize;
  /** Bits of one affine code. */
  bits: u32;
  /** What a codebook's integers are multiples of, where it was rounded to such. */
  unit: f32;
}

/**
 * Elements [first, first + count) of the flattened matrix to out. In the GGUF formats both ends must be ends of blocks;
 * codebook and affine formats take any run.
 */
export function decode(format: i32, parts: Parts, first: u32, count: i32, out: usize): void {
  const data = parts.data;
  switch (format) {
    case CODEBOOK4:
    case CODEBOOK4_NESTED:
      return decodeCodebook(parts, format === CODEBOOK4_NESTED, first, count, out);
    case F16:
      return decodeF16(data + 2 * first, count, out);
    case BF16:
      return decodeBF16(data + 2 * first, count, out);
    case Q4_0:
      return decodeQ4_0(data + 18 * (first / 32), count, out);
    case Q4_1:
      return decodeQ4_1(data + 20 * (first / 32), count, out);
    case Q8_0:
      return decodeQ8_0(data + 34 * (first / 32), count, out);
    case Q4_K:
      return decodeQ4_K(data + 144 * (first / 256), count, out);
    case AFFINE:
    case AFFINE_SYMMETRIC:
      return decodeAffine(parts, format === AFFINE_SYMMETRIC, first, count, out);
    default:
      return decodeQ6_K(data + 210 * (first / 256), count, out);
  }
}

/** scale of one block of a codebook format. */
// @ts-ignore: decorator
@inline
export function blockScale(parts: Parts, nested: bool, block: u32): f32 {
  if (!nested) return load<f32>(parts.absmax + ((<usize>block) << 2));
  const mapped = load<f32>(parts.nestedMap + ((<usize>load<u8>(parts.absmax + block)) << 2));
  return mapped * load<f32>(parts.nestedAbsmax + ((<usize>(block >> 8)) << 2)) + load<f32>(parts.nestedOffset);
}

// @ts-ignore: decorator
@inline
function codeValue(parts: Parts, e: u32): f32 {
  const byte = load<u8>(parts.data + (e >> 1));
  const code: u32 = e & 1 ? byte & 15 : byte >> 4;
  return load<f32>(parts.codebook + ((<usize>code) << 2));
}

/** 16 codes to 16 scaled floats: each byte of the values is looked up by itself, then the bytes are put together. */
// @ts-ignore: decorator
@inline
function lookup16(codes: v128, p0: v128, p1: v128, p2: v128, p3: v128, scale: v128, out: usize): void {
  const b0 = lookup(p0, codes);
  const b1 = lookup(p1, codes);
  const b2 = lookup(p2, codes);
  const b3 = lookup(p3, codes);
  const low01 = v128.shuffle<i8>(b0, b1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const high01 = v128.shuffle<i8>(b0, b1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const low23 = v128.shuffle<i8>(b2, b3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const high23 = v128.shuffle<i8>(b2, b3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  v128.store(out, f32x4.mul(scale, v128.shuffle<i16>(low01, low23, 0, 8, 1, 9, 2, 10, 3, 11)));
  v128.store(out, f32x4.mul(scale, v128.shuffle<i16>(low01, low23, 4, 12, 5, 13, 6, 14, 7, 15)), 16);
  v128.store(out, f32x4.mul(scale, v128.shuffle<i16>(high01, high23, 0, 8, 1, 9, 2, 10, 3, 11)), 32);
  v128.store(out, f32x4.mul(scale, v128.shuffle<i16>(high01, high23, 4, 12, 5, 13, 6, 14, 7, 15)), 48);
}

/** Any run, even one that starts inside a byte and crosses blocks. The first element of a byte is its high nibble. */
function decodeCodebook(parts: Parts, nested: bool, first: u32, count: i32, out: usize): void {
  const planes = changetype<usize>(parts) + PLANES;
  const p0 = v128.load(planes);
  const p1 = v128.load(planes, 16);
  const p2 = v128.load(planes, 32);
  const p3 = v128.load(planes, 48);
  const size = parts.blockSize;
  const end = first + count;
  let block = first / size;
  let blockEnd = (block + 1) * size;
  let e = first;
  while (e < end) {
    const stop = blockEnd < end ? blockEnd : end;
    const s = blockScale(parts, nested, block);
    const scale = f32x4.splat(s);
    if (e & 1) {
      store<f32>(out, codeValue(parts, e) * s);
      out += 4;
      e += 1;
    }
    let at = parts.data + (e >> 1);
    for (; e + 32 <= stop; e += 32) {
      const bytes = v128.load(at);
      const high = highNibbles(bytes);
      const low = lowNibbles(bytes);
      lookup16(v128.shuffle<i8>(high, low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), p0, p1, p2, p3, scale, out);
      lookup16(v128.shuffle<i8>(high, low, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), p0, p1, p2, p3, scale, out + 64);
      at += 16;
      out += 128;
    }
    for (; e < stop; e++) {
      store<f32>(out, codeValue(parts, e) * s);
      out += 4;
    }
    block += 1;
    blockEnd += size;
  }
}

function decodeF16(at: usize, count: i32, out: usize): void {
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    v128.store(out, halves(v128.load16x4_u(at)));
    at += 8;
    out += 16;
  }
  for (; i < count; i++) {
    store<f32>(out, half(at));
    at += 2;
    out += 4;
  }
}

function decodeBF16(at: usize, count: i32, out: usize): void {
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    v128.store(out, i32x4.shl(v128.load16x4_u(at), 16));
    at += 8;
    out += 16;
  }
  for (; i < count; i++) {
    store<u32>(out, (<u32>load<u16>(at)) << 16);
    at += 2;
    out += 4;
  }
}

/** 16 signed bytes times a scale, to floats. */
// @ts-ignore: decorator
@inline
function scale16(bytes: v128, scale: v128, out: usize): void {
  const low = i16x8.extend_low_i8x16_s(bytes);
  const high = i16x8.extend_high_i8x16_s(bytes);
  v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low))));
  v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low))), 16);
  v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high))), 32);
  v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high))), 48);
}

/** The same, plus an offset. */
// @ts-ignore: decorator
@inline
function scaleAdd16(bytes: v128, scale: v128, offset: v128, out: usize): void {
  const low = i16x8.extend_low_i8x16_s(bytes);
  const high = i16x8.extend_high_i8x16_s(bytes);
  v128.store(out, f32x4.add(f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low))), offset));
  v128.store(out, f32x4.add(f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low))), offset), 16);
  v128.store(out, f32x4.add(f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high))), offset), 32);
  v128.store(out, f32x4.add(f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high))), offset), 48);
}

function decodeQ4_0(at: usize, count: i32, out: usize): void {
  const eight = i8x16.splat(8);
  for (let i = 0; i < count; i += 32) {
    const scale = f32x4.splat(half(at));
    const bytes = v128.load(at, 2);
    scale16(i8x16.sub(lowNibbles(bytes), eight), scale, out);
    scale16(i8x16.sub(highNibbles(bytes), eight), scale, out + 64);
    at += 18;
    out += 128;
  }
}

function decodeQ4_1(at: usize, count: i32, out: usize): void {
  for (let i = 0; i < count; i += 32) {
    const scale = f32x4.splat(half(at));
    const offset = f32x4.splat(half(at + 2));
    const bytes = v128.load(at, 4);
    scaleAdd16(lowNibbles(bytes), scale, offset, out);
    scaleAdd16(highNibbles(bytes), scale, offset, out + 64);
    at += 20;
    out += 128;
  }
}

function decodeQ8_0(at: usize, count: i32, out: usize): void {
  for (let i = 0; i < count; i += 32) {
    const scale = f32x4.splat(half(at));
    scale16(v128.load(at, 2), scale, out);
    scale16(v128.load(at, 18), scale, out + 64);
    at += 34;
    out += 128;
  }
}

/** Super-blocks of 256: 8 sub-blocks of 32 with 6-bit scale and min each; a 32-byte run holds two sub-blocks, one per nibble. */
function decodeQ4_K(at: usize, count: i32, out: usize): void {
  for (let i = 0; i < count; i += 256) {
    const d = f32x4.splat(half(at));
    const dmin = f32x4.splat(-half(at + 2));
    for (let h = 0; h < 2; h++) {
      const scales = f32x4.mul(d, sixBitScales(at + 4, h));
      const minima = f32x4.mul(dmin, sixBitMins(at + 4, h));
      const codes = at + 16 + (h << 6);
      decodePair(codes, v128.shuffle<i32>(scales, scales, 0, 0, 0, 0), v128.shuffle<i32>(scales, scales, 1, 1, 1, 1), v128.shuffle<i32>(minima, minima, 0, 0, 0, 0), v128.shuffle<i32>(minima, minima, 1, 1, 1, 1), out);
      decodePair(codes + 32, v128.shuffle<i32>(scales, scales, 2, 2, 2, 2), v128.shuffle<i32>(scales, scales, 3, 3, 3, 3), v128.shuffle<i32>(minima, minima, 2, 2, 2, 2), v128.shuffle<i32>(minima, minima, 3, 3, 3, 3), out + 256);
      out += 512;
    }
    at += 144;
  }
}

/** The two sub-blocks that share 32 bytes, one in the lower nibbles and one in the upper. */
// @ts-ignore: decorator
@inline
function decodePair(codes: usize, scale0: v128, scale1: v128, minimum0: v128, minimum1: v128, out: usize): void {
  const first = v128.load(codes);
  const second = v128.load(codes, 16);
  scaleAdd16(lowNibbles(first), scale0, minimum0, out);
  scaleAdd16(lowNibbles(second), scale0, minimum0, out + 64);
  scaleAdd16(highNibbles(first), scale1, minimum1, out + 128);
  scaleAdd16(highNibbles(second), scale1, minimum1, out + 192);
}

/** Scales of the sub-blocks 4h to 4h + 3 of Q4_K: six bits each, of the last four the upper two above those of the first. */
// @ts-ignore: decorator
@inline
export function sixBitScales(at: usize, h: i32): v128 {
  const bytes = h === 0 ? load<u32>(at) & 0x3f3f3f3f : (load<u32>(at, 8) & 0x0f0f0f0f) | ((load<u32>(at) >> 2) & 0x30303030);
  return bytesToFloats(bytes);
}

/** Their minima, which lie likewise. */
// @ts-ignore: decorator
@inline
export function sixBitMins(at: usize, h: i32): v128 {
  const bytes = h === 0 ? load<u32>(at, 4) & 0x3f3f3f3f : ((load<u32>(at, 8) >> 4) & 0x0f0f0f0f) | ((load<u32>(at, 4) >> 2) & 0x30303030);
  return bytesToFloats(bytes);
}

// @ts-ignore: decorator
@inline
function bytesToFloats(bytes: u32): v128 {
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(i32x4.splat(bytes))));
}

/** 16 codes of Q6_K, 32 more than what they stand for: four bits from the low nibbles of one vector, two from the low ends of another's bytes. */
// @ts-ignore: decorator
@inline
export function sixBitCodes(low: v128, high: v128): v128 {
  return v128.or(lowNibbles(low), i16x8.shl(v128.and(high, i8x16.splat(3)), 4));
}

/** Super-blocks of 256 in two halves of 128; a half has four runs of 32 whose low 4 bits and high 2 bits lie apart. */
function decodeQ6_K(at: usize, count: i32, out: usize): void {
  const bias = i8x16.splat(32);
  for (let i = 0; i < count; i += 256) {
    const d = half(at + 208);
    for (let h = 0; h < 2; h++) {
      for (let part = 0; part < 2; part++) {
        const ql = at + 64 * h + 16 * part;
        const first = v128.load(ql);
        const second = v128.load(ql, 32);
        const high = v128.load(at + 128 + 32 * h + 16 * part);
        const scales = at + 192 + 8 * h + part;
        const to = out + ((<usize>(128 * h + 16 * part)) << 2);
        scale16(i8x16.sub(sixBitCodes(first, high), bias), f32x4.splat(d * <f32>load<i8>(scales)), to);
        scale16(i8x16.sub(sixBitCodes(second, i16x8.shr_u(high, 2)), bias), f32x4.splat(d * <f32>load<i8>(scales, 2)), to + 128);
        scale16(i8x16.sub(sixBitCodes(i16x8.shr_u(first, 4), i16x8.shr_u(high, 4)), bias), f32x4.splat(d * <f32>load<i8>(scales, 4)), to + 256);
        scale16(i8x16.sub(sixBitCodes(i16x8.shr_u(second, 4), i16x8.shr_u(high, 6)), bias), f32x4.splat(d * <f32>load<i8>(scales, 6)), to + 384);
      }
    }
    at += 210;
    out += 1024;
  }
}

/** Code e of a bit-stream, lowest bits first; one of 3 bits may end in the next byte. */
// @ts-ignore: decorator
@inline
function streamCode(data: usize, bits: u32, e: u32): i32 {
  const bit = (e & 7) * bits;
  const at = data + (e >> 3) * bits + (bit >> 3);
  const shift = bit & 7;
  let code: u32 = load<u8>(at) >> <u8>shift;
  if (shift + bits > 8) code |= (<u32>load<u8>(at, 1)) << (8 - shift);
  return code & ((1 << bits) - 1);
}

/** Any run, even one that starts inside a byte and crosses groups. */
function decodeAffine(parts: Parts, symmetric: bool, first: u32, count: i32, out: usize): void {
  const data = parts.data;
  const bits = parts.bits;
  const size = parts.blockSize;
  const end = first + count;
  let group = first / size;
  let groupEnd = (group + 1) * size;
  let e = first;
  while (e < end) {
    const stop = groupEnd < end ? groupEnd : end;
    const s = load<f32>(parts.scales + ((<usize>group) << 2));
    const zero: i32 = symmetric ? 1 << (bits - 1) : load<u8>(parts.zeros + group);
    if (bits === 4) {
      const scale = f32x4.splat(s);
      const zeros = i8x16.splat(<i8>zero);
      if (e & 1) {
        store<f32>(out, s * <f32>(streamCode(data, bits, e) - zero));
        out += 4;
        e += 1;
      }
      for (; e + 32 <= stop; e += 32) {
        const bytes = v128.load(data + (e >> 1));
        const low = lowNibbles(bytes);
        const high = highNibbles(bytes);
        scale16(i8x16.sub(v128.shuffle<i8>(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), zeros), scale, out);
        scale16(i8x16.sub(v128.shuffle<i8>(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), zeros), scale, out + 64);
        out += 128;
      }
    } else if (bits === 8) {
      const scale = f32x4.splat(s);
      const zeros = i32x4.splat(zero);
      for (; e + 8 <= stop; e += 8) {
        const wide = v128.load8x8_u(data + e);
        v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.sub(i32x4.extend_low_i16x8_u(wide), zeros))));
        v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(i32x4.sub(i32x4.extend_high_i16x8_u(wide), zeros))), 16);
        out += 32;
      }
    }
    if (bits < 4) {
      for (; e < stop && (e & 7) !== 0; e++) {
        store<f32>(out, s * <f32>(streamCode(data, bits, e) - zero));
        out += 4;
      }
      // Eight codes begin on a byte. A product with a power of two moves each code of a lane to the top, where a shift brings it down.
      const scale = f32x4.splat(s);
      const zeros = i32x4.splat(zero);
      const three = bits === 3;
      const first = three ? i32x4(0x20000000, 0x4000000, 0x800000, 0x100000) : i32x4(0x40000000, 0x10000000, 0x4000000, 0x1000000);
      const second = three ? i32x4(0x20000, 0x4000, 0x800, 0x100) : i32x4(0x400000, 0x100000, 0x40000, 0x10000);
      const down = 32 - bits;
      for (; e + 8 <= stop; e += 8) {
        const at = data + (e >> 3) * bits;
        let word: u32 = load<u16>(at);
        if (three) word |= (<u32>load<u8>(at, 2)) << 16;
        const lanes = i32x4.splat(word);
        const low = i32x4.sub(i32x4.shr_u(i32x4.mul(lanes, first), down), zeros);
        const high = i32x4.sub(i32x4.shr_u(i32x4.mul(lanes, second), down), zeros);
        v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(low)));
        v128.store(out, f32x4.mul(scale, f32x4.convert_i32x4_s(high)), 16);
        out += 32;
      }
    }
    for (; e < stop; e++) {
      store<f32>(out, s * <f32>(streamCode(data, bits, e) - zero));
      out += 4;
    }
    group += 1;
    groupEnd += size;
  }
}
