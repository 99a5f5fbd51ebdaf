/**
 * What products of a few rows read of W besides its codes. Most formats are cut into runs of 32 codes that share a scale and
 * an offset, w = scale · code + offset, which lie in the run itself (GGUF) or beside all codes. AFFINE stands for both of its
 * formats: whether zeros are stored is looked up.
 */
import { AFFINE, AFFINE_SYMMETRIC, blockScale, CODEBOOK4, CODEBOOK4_NESTED, Parts, Q4_0, Q4_1, Q8_0 } from './dequant';
import { half, halves } from './half';

// @ts-ignore: decorator
@inline
export function isAffine(format: i32): bool {
  return format === AFFINE || format === AFFINE_SYMMETRIC;
}

// @ts-ignore: decorator
@inline
export function isCodebook(format: i32): bool {
  return format === CODEBOOK4 || format === CODEBOOK4_NESTED;
}

// @ts-ignore: decorator
@inline
function isStream(format: i32): bool {
  return isAffine(format) || isCodebook(format);
}

/** Bytes of a run. `bits`: of an affine code. */
// @ts-ignore: decorator
@inline
export function runBytes(format: i32, bits: i32): usize {
  if (isAffine(format)) return <usize>(4 * bits);
  if (isCodebook(format)) return 16;
  return format === Q4_0 ? 18 : format === Q4_1 ? 20 : 34;
}

/** Where the codes of a run begin in it. */
// @ts-ignore: decorator
@inline
export function codesAt(format: i32): usize {
  return isStream(format) ? 0 : format === Q4_1 ? 4 : 2;
}

/** Whether `fourScales` may be asked for: four runs of a row lie in one block, or two in each of two, or one in each of four. */
// @ts-ignore: decorator
@inline
export function hasFour(format: i32, parts: Parts, width: i32): bool {
  const size = parts.blockSize;
  return !isStream(format) || (popcnt(size) === 1 && (size === 32 || width % 64 === 0));
}

/** The first words of four runs: in GGUF's formats they hold scale and minimum. */
// @ts-ignore: decorator
@inline
export function fourWords(format: i32, at: usize): v128 {
  if (isStream(format)) return i32x4.splat(0);
  const step = runBytes(format, 0);
  return i32x4(load<u32>(at), load<u32>(at + step), load<u32>(at + 2 * step), load<u32>(at + 3 * step));
}

/** Scales of the four runs from element `first` on. */
// @ts-ignore: decorator
@inline
export function fourScales(format: i32, parts: Parts, first: u32, words: v128): v128 {
  if (!isStream(format)) return halves(words);
  const shift = ctz(parts.blockSize);
  const block = first >> shift;
  if (shift === 5) return f32x4(scaleOf(format, parts, block), scaleOf(format, parts, block + 1), scaleOf(format, parts, block + 2), scaleOf(format, parts, block + 3));
  const one = scaleOf(format, parts, block);
  const two = scaleOf(format, parts, (first + 64) >> shift);
  return f32x4(one, one, two, two);
}

/**
 * Their offsets: minima, or minus the scales times what stands for 0: a zero, or what is added to have no signs, 128 to the
 * bytes of Q8_0 and 64 to those of a rounded codebook.
 */
// @ts-ignore: decorator
@inline
export function fourOffsets(format: i32, bits: i32, parts: Parts, first: u32, words: v128, scales: v128): v128 {
  if (format === Q4_1) return halves(i32x4.shr_u(words, 16));
  if (format === Q4_0) return f32x4.mul(scales, f32x4.splat(-8));
  if (format === Q8_0) return f32x4.mul(scales, f32x4.splat(-128));
  if (isCodebook(format)) return f32x4.mul(scales, f32x4.splat(-64));
  if (parts.zeros === 0) return f32x4.mul(scales, f32x4.splat(-(<f32>(1 << (bits - 1)))));
  const shift = ctz(parts.blockSize);
  const group = first >> shift;
  if (shift === 5) return f32x4.mul(scales, f32x4(minusZero(parts, group), minusZero(parts, group + 1), minusZero(parts, group + 2), minusZero(parts, group + 3)));
  const one = minusZero(parts, group);
  const two = minusZero(parts, (first + 64) >> shift);
  return f32x4.mul(scales, f32x4(one, one, two, two));
}

/** Scale of the run at element `first`, whose bytes begin at `at`. */
// @ts-ignore: decorator
@inline
export function runScale(format: i32, parts: Parts, first: u32, at: usize): f32 {
  return isStream(format) ? scaleOf(format, parts, first / parts.blockSize) : half(at);
}

// @ts-ignore: decorator
@inline
export function runOffset(format: i32, bits: i32, parts: Parts, first: u32, at: usize, scale: f32): f32 {
  if (format === Q4_1) return half(at + 2);
  if (format === Q4_0) return -8 * scale;
  if (format === Q8_0) return -128 * scale;
  if (isCodebook(format)) return -64 * scale;
  return scale * (parts.zeros === 0 ? -(<f32>(1 << (bits - 1))) : minusZero(parts, first / parts.blockSize));
}

// @ts-ignore: decorator
@inline
function scaleOf(format: i32, parts: Parts, block: u32): f32 {
  if (isCodebook(format)) return blockScale(parts, format === CODEBOOK4_NESTED, block);
  return load<f32>(parts.scales + ((<usize>block) << 2));
}

// @ts-ignore: decorator
@inline
function minusZero(parts: Parts, group: u32): f32 {
  return -(<f32>load<u8>(parts.zeros + group));
}
