import { ConfigError, type AffineBits } from '@niwaki/tensor';

/**
 * How scale and zero follow from a group's values; Q = 2^bits - 1. In all of them code = clamp(round(w / scale) + zero, 0, Q),
 * rounded half to even, and value = scale · (code - zero).
 * - 'asymmetric' (GPTQ, torchao): from min(0, min) to max(0, max) in Q steps; the zero is the code nearest to 0.
 * - 'awq': the same without 0 forced into the range, and a step of at least 1e-5 / Q.
 * - 'absmax': scale = a / (2^(bits-1) - 1) for a = max |w|, zero = 2^(bits-1): both ends are codes, one code is never used.
 *   With 8 bits and a group a row, the int8 of LLM.int8().
 * - 'gptq': scale = 2a / Q, zero = 2^(bits-1), as GPTQ writes `sym`: the ends lie half a step outside. A group without
 *   negative values gets a / Q, which cuts its upper half off; so does the reference.
 * - 'torchao': scale = 2a / Q, zero = 2^(bits-1), whatever the signs.
 */
export type AffineGrid = 'asymmetric' | 'awq' | 'absmax' | 'gptq' | 'torchao';

export const affineGrids: readonly AffineGrid[] = ['asymmetric', 'awq', 'absmax', 'gptq', 'torchao'];
export const affineBits: readonly AffineBits[] = [2, 3, 4, 8];

/** Whether every zero is 2^(bits-1), so that none is stored. */
export const isSymmetric = (grid: AffineGrid): boolean => grid !== 'asymmetric' && grid !== 'awq';

/** A group's step, f32, and the code that stands for 0. */
export interface AffineStep {
  readonly scale: number;
  readonly zero: number;
}

const { fround } = Math;

/** Half to even, for numbers far below 2^51. */
export const roundToEven = (x: number): number => x + 6755399441055744 - 6755399441055744;

const clamp = (x: number, least: number, most: number): number => (x < least ? least : x > most ? most : x);

export interface AffineStepOptions {
  readonly bits: AffineBits;
  readonly grid: AffineGrid;
  /**
   * Shrink the range where that is better: of 1, 0.99, … 0.21 of it, what Σ |error|^2.4 is least for, as in GPTQ's
   * quantizer. Up to 80 times the work. Default false: the whole range.
   */
  readonly mse?: boolean;
}

/** Scale and zero of the values [from, to) of an array, all finite; f32 arithmetic throughout. */
export function affineStep(
  values: ArrayLike<number>,
  [from, to]: readonly [from: number, to: number],
  { bits, grid, mse = false }: AffineStepOptions,
): AffineStep {
  let least = Infinity;
  let most = -Infinity;
  for (let i = from; i < to; i++) {
    const value = values[i]!;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  const whole = stepOfRange(fround(least), fround(most), { bits, grid });
  if (!mse) return whole;
  let [best, bestError] = [whole, errorOf(values, [from, to], { step: whole, bits, most: Infinity })];
  for (let i = 1; i < 80; i++) {
    const part = 1 - i / 100;
    const step = stepOfRange(fround(part * least), fround(part * most), { bits, grid });
    const error = errorOf(values, [from, to], { step, bits, most: bestError });
    if (error < bestError) [best, bestError] = [step, error];
  }
  return best;
}

/** Σ |error|^2.4 over the values [from, to), or the first partial sum that is over `most`. */
function errorOf(
  values: ArrayLike<number>,
  [from, to]: readonly [from: number, to: number],
  { step, bits, most }: { readonly step: AffineStep; readonly bits: AffineBits; readonly most: number },
): number {
  let total = 0;
  for (let i = from; i < to && total <= most; i++) {
    total += toThe24(Math.abs(affineValue(affineCode(values[i]!, step, bits), step) - values[i]!));
  }
  return total;
}

/** 1/2048 of a doubling apart: between them a line is within 1e-7 of x^2.4. */
const mantissas = Float64Array.from({ length: 2049 }, (_, i) => (1 + i / 2048) ** 2.4);
/** Of 0 and numbers too small to have a leading 1: 0. */
const doublings = Float64Array.from({ length: 256 }, (_, i) => (i === 0 ? 0 : 2 ** (2.4 * (i - 127))));
const asFloat = new Float32Array(1);
const asBits = new Uint32Array(asFloat.buffer);

/** x^2.4 of an f32 from 0, by look-up: it is asked for up to 80 times an entry, and `**` takes most of that time. */
function toThe24(x: number): number {
  asFloat[0] = x;
  const bits = asBits[0]!;
  const at = (bits >>> 12) & 2047;
  const below = mantissas[at]!;
  return doublings[bits >>> 23]! * (below + (bits & 4095) * 2 ** -12 * (mantissas[at + 1]! - below));
}

function stepOfRange(least: number, most: number, { bits, grid }: { readonly bits: AffineBits; readonly grid: AffineGrid }): AffineStep {
  const top = 2 ** bits - 1;
  const middle = 2 ** (bits - 1);
  const absmax = Math.max(-least, most);
  switch (grid) {
    case 'absmax':
      return { scale: fround(absmax / (middle - 1)), zero: middle };
    case 'torchao':
      return { scale: fround(fround(2 * absmax) / top), zero: middle };
    case 'gptq': {
      if (absmax === 0) return { scale: fround(2 / top), zero: middle };
      return { scale: fround((least < 0 ? fround(2 * absmax) : absmax) / top), zero: middle };
    }
    case 'awq': {
      const scale = fround(Math.max(fround(most - least), fround(1e-5)) / top);
      return { scale, zero: clamp(-roundToEven(fround(least / scale)), 0, top) };
    }
    case 'asymmetric': {
      const empty = least >= 0 && most <= 0;
      const low = empty ? -1 : Math.min(least, 0);
      const high = empty ? 1 : Math.max(most, 0);
      const scale = fround(fround(high - low) / top);
      return { scale, zero: clamp(roundToEven(fround(-low / scale)), 0, top) };
    }
  }
}

/** The code of a value under a step. */
export function affineCode(value: number, { scale, zero }: AffineStep, bits: AffineBits): number {
  if (scale === 0) return zero;
  return clamp(roundToEven(fround(value / scale)) + zero, 0, 2 ** bits - 1);
}

/** What a code stands for, f32. */
export const affineValue = (code: number, { scale, zero }: AffineStep): number => fround(scale * (code - zero));

/** @throws ConfigError naming the field, the value and the range */
export function checkAffine({ bits, grid }: { readonly bits: AffineBits; readonly grid: AffineGrid }): void {
  if (!affineBits.includes(bits)) throw new ConfigError(`bits must be one of ${affineBits.join(', ')}, got ${String(bits)}`, { bits });
  if (!affineGrids.includes(grid)) throw new ConfigError(`grid must be one of ${affineGrids.join(', ')}, got '${String(grid)}'`, { grid });
}

/**
 * Entries of a row that share a scale, where 'row' is all of them.
 * @throws ConfigError unless they divide the row, in multiples of 8: kernels read eight neighbors with one scale
 */
export function affineGroupSize(groupSize: number | 'row', width: number, path: string): number {
  if (groupSize === 'row' || groupSize === width) return width;
  if (Number.isInteger(groupSize) && groupSize > 0 && groupSize % 8 === 0 && width % groupSize === 0) return groupSize;
  const fits = [256, 128, 64, 32, 16, 8].filter((size) => size <= width && width % size === 0);
  throw new ConfigError(`'${path}' has rows of ${width}: groupSize must be a multiple of 8 that divides them, or 'row', got ${groupSize}`, {
    path,
    groupSize,
    width,
    help: fits.length === 0 ? "Use groupSize: 'row' for this matrix." : `These fit: ${fits.join(', ')}, 'row'.`,
  });
}
