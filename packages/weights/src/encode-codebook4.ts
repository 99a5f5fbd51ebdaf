import type { PackedParts } from '@niwaki/tensor';
import { notFinite } from './packed.ts';
import { forEachRun, type RowReader } from './rows.ts';

export interface EncodeCodebook4Options {
  readonly blockSize: number;
  /** 16 values in the order of their codes; need not be sorted. */
  readonly codebook: Float32Array;
  /** 256 values: quantizes the absmax too (QLoRA's double quantization). */
  readonly nestedMap?: Float32Array;
}

const { fround } = Math;

/**
 * Quantizes a matrix, byte for byte as bitsandbytes does, from rows that are read once and in order: beside the result
 * (about half a byte an entry) only a few MiB of rows are alive.
 * @param name of the matrix, for errors: a value that is not finite throws NumericError
 */
export async function encodeCodebook4(
  name: string,
  shape: readonly [out: number, in_: number],
  rows: RowReader,
  { blockSize, codebook, nestedMap }: EncodeCodebook4Options,
): Promise<PackedParts> {
  const entries = shape[0] * shape[1];
  const codes = new Uint8Array(Math.ceil(entries / 2));
  const absmax = new Float32Array(Math.ceil(entries / blockSize));
  const search = nearestCode(codebook);
  const encodeRun = (values: Float32Array, first: number): void => {
    for (let at = 0; at < values.length; at += blockSize) {
      const block = values.subarray(at, Math.min(values.length, at + blockSize));
      const scale = absmaxOf(block, name, shape[1], first + at);
      absmax[(first + at) / blockSize] = scale;
      const reciprocal = reciprocalOf(scale);
      for (let i = 0; i < block.length; i += 2) {
        const high = search(normalized(block[i]!, reciprocal));
        // A lone last entry is paired with zero.
        const low = search(i + 1 < block.length ? normalized(block[i + 1]!, reciprocal) : 0);
        codes[(first + at + i) >>> 1] = (high << 4) | low;
      }
    }
  };
  await forEachRun(shape, rows, encodeRun, { multiple: blockSize });
  if (nestedMap === undefined) return { codes, codebook, absmax };
  return { codes, codebook, nestedMap, ...encodeNested(absmax, nestedMap) };
}

/** The absmax as bytes: their mean is taken off, and what is left is quantized against `map` in blocks of 256. */
function encodeNested(absmax: Float32Array, map: Float32Array): Required<Pick<PackedParts, 'absmax' | 'nestedAbsmax' | 'nestedOffset'>> {
  let total = 0;
  for (const value of absmax) total += value;
  const offset = fround(total / absmax.length);
  const centered = absmax.map((value) => value - offset);
  const bytes = new Uint8Array(absmax.length);
  const nestedAbsmax = new Float32Array(Math.ceil(absmax.length / 256));
  const search = nearestCode(map);
  for (let at = 0; at < centered.length; at += 256) {
    const block = centered.subarray(at, at + 256);
    let scale = 0;
    for (const value of block) scale = Math.max(scale, Math.abs(value));
    nestedAbsmax[at / 256] = scale;
    const reciprocal = reciprocalOf(scale);
    for (let i = 0; i < block.length; i++) bytes[at + i] = search(normalized(block[i]!, reciprocal));
  }
  return { absmax: bytes, nestedAbsmax, nestedOffset: Float32Array.of(offset) };
}

function absmaxOf(block: Float32Array, name: string, width: number, first: number): number {
  let largest = 0;
  for (let i = 0; i < block.length; i++) {
    const size = Math.abs(block[i]!);
    if (!(size < Infinity)) throw notFinite(name, block[i]!, [Math.floor((first + i) / width), (first + i) % width]);
    if (size > largest) largest = size;
  }
  return largest;
}

// A block of zeros must not divide by zero; its codes mean zero all the same.
const reciprocalOf = (scale: number): number => fround(1 / Math.max(scale, fround(1e-38)));
const normalized = (value: number, reciprocal: number): number => Math.max(-1, Math.min(1, fround(value * reciprocal)));

/**
 * Nearest entry of a table of 2^k values: how many midpoints of the sorted table lie strictly below (a tie goes to the
 * lower entry), mapped back to the code of that entry. Takes values in [-1, 1].
 */
export function nearestCode(table: Float32Array): (value: number) => number {
  const order = Array.from(table.keys()).sort((a, b) => table[a]! - table[b]!);
  const codes = Uint8Array.from(order);
  const midpoints = new Float32Array(table.length - 1);
  for (let i = 0; i < midpoints.length; i++) midpoints[i] = fround(table[order[i]!]! + table[order[i + 1]!]!) / 2;
  // Where to start counting for each of 2048 parts of [-1, 1]: one part too low, so that rounding cannot start too high.
  const starts = Uint8Array.from({ length: 2049 }, (_, part) => midpoints.filter((midpoint) => midpoint < (part - 1) / 1024 - 1).length);
  return (value) => {
    let below = starts[((value + 1) * 1024) | 0]!;
    while (below < midpoints.length && value > midpoints[below]!) below++;
    return codes[below]!;
  };
}
