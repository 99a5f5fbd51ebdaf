import { bfloatToFloat, floatToBfloat, floatToHalf, halfToFloat, packBits } from '@niwaki/tensor';
import { roundToEven } from './affine-grid.ts';
import { expectFinite } from './encode-affine.ts';
import { nearestCode } from './encode-codebook4.ts';
import type { NormalFloatOptions } from './normal-float.ts';
import { normalFloatBook } from './normal-float-book.ts';
import type { RowReader } from './rows.ts';

export interface EncodedNormalFloat {
  readonly codes: Uint8Array;
  readonly scaleCodes: Uint8Array;
  /** As stored: rounded to `scaleType`. */
  readonly groupScales: Float32Array;
  readonly offset: number;
}

const { fround } = Math;
const stored: Readonly<Record<NormalFloatOptions['scaleType'], (value: number) => number>> = {
  float32: fround,
  float16: (value) => halfToFloat(floatToHalf(value)),
  bfloat16: (value) => bfloatToFloat(floatToBfloat(value)),
};

/**
 * Quantizes a matrix as LQ-LoRA does (Guo et al. 2023, section A): a block's largest magnitude, less the smallest of all, in
 * whole parts of the largest of its group; then each entry by the scale that comes back of that, not by the one before it.
 * Host memory: the matrix in f32, whose smallest scale is known only at its end.
 * @param name of the matrix, for errors: a value that is not finite throws NumericError
 */
export async function encodeNormalFloat(
  name: string,
  [out, width]: readonly [out: number, in_: number],
  rows: RowReader,
  { bits, scaleBits, scaleType, blockSize, groupSize }: NormalFloatOptions,
): Promise<EncodedNormalFloat> {
  const values = await rows([0, out]);
  expectFinite(values, name, width);
  const largest = Float32Array.from({ length: values.length / blockSize }, (_, block) =>
    values.subarray(block * blockSize, (block + 1) * blockSize).reduce((most, value) => Math.max(most, Math.abs(value)), 0),
  );
  const offset = largest.reduce((least, scale) => Math.min(least, scale), Infinity);
  const top = 2 ** scaleBits - 1;
  const groupScales = new Float32Array(largest.length / groupSize);
  const scaleCodes = new Uint8Array(largest.length);
  const codes = new Uint8Array(values.length);
  const search = nearestCode(normalFloatBook(bits));
  for (let group = 0; group < groupScales.length; group++) {
    const range = [group * groupSize, (group + 1) * groupSize] as const;
    const above = largest.subarray(...range).reduce((most, scale) => Math.max(most, fround(scale - offset)), 0);
    const groupScale = (groupScales[group] = stored[scaleType](above));
    for (let block = range[0]; block < range[1]; block++) {
      const part = groupScale === 0 ? 0 : roundToEven(fround(fround(largest[block]! - offset) * fround(top / groupScale)));
      scaleCodes[block] = Math.min(part, top);
      const scale = blockScale(scaleCodes[block]!, { groupScale, offset, top });
      for (let e = block * blockSize; e < (block + 1) * blockSize; e++) codes[e] = search(within(values[e]!, scale));
    }
  }
  return { codes: packBits(codes, { bits }), scaleCodes: packBits(scaleCodes, { bits: scaleBits }), groupScales, offset };
}

/** A block's scale as it is read, each operation rounded to f32. */
const blockScale = (
  code: number,
  { groupScale, offset, top }: { readonly groupScale: number; readonly offset: number; readonly top: number },
): number => fround(fround(code * fround(groupScale / top)) + offset);

/** A scale may come back smaller than the largest entry; a block of zeros has none. */
const within = (value: number, scale: number): number => (scale === 0 ? 0 : Math.max(-1, Math.min(1, fround(value / scale))));
