import { packBits, packedBytes, type AffineBits } from '@niwaki/tensor';
import { affineCode, affineStep, isSymmetric, type AffineGrid } from './affine-grid.ts';
import { notFinite } from './packed.ts';
import { forEachRun, type RowReader } from './rows.ts';

/** The stored parts of an affine matrix, on the host. */
export interface AffineParts {
  /** One bit-stream over the flattened matrix, lowest bits first: ceil(out · in · bits / 8) bytes. */
  readonly codes: Uint8Array;
  /** f32, one a group: [out, in / groupSize]. */
  readonly scales: Float32Array;
  /** A byte a group; absent where every zero is 2^(bits-1). */
  readonly zeros?: Uint8Array;
  /** Column k of the stored matrix is column order[k] of the linear map (act-order of GPTQ). */
  readonly order?: Int32Array;
  /** Factors on the columns of the input before the product (1 / s of AWQ), by column of the linear map. */
  readonly inputScales?: Float32Array;
}

export interface EncodeAffineOptions {
  readonly bits: AffineBits;
  /** Entries of a row that share a scale; divides the row. */
  readonly groupSize: number;
  readonly grid: AffineGrid;
  /** Shrink each group's range where that is better, as in `affineStep`. */
  readonly mse?: boolean;
}

/**
 * Rounds a matrix to the nearest codes, from rows that are read once and in order: beside the result (bits / 8 bytes an
 * entry) only a few MiB of rows are alive.
 * @param name of the matrix, for errors: a value that is not finite throws NumericError
 */
export async function encodeAffine(
  name: string,
  shape: readonly [out: number, in_: number],
  rows: RowReader,
  { bits, groupSize, grid, mse = false }: EncodeAffineOptions,
): Promise<AffineParts> {
  const entries = shape[0] * shape[1];
  const codes = new Uint8Array(packedBytes(entries, bits));
  const scales = new Float32Array(entries / groupSize);
  const zeros = isSymmetric(grid) ? undefined : new Uint8Array(scales.length);
  const encodeRun = (values: Float32Array, first: number): void => {
    expectFinite(values, name, shape[1], first);
    const run = new Uint8Array(values.length);
    for (let at = 0; at < values.length; at += groupSize) {
      const step = affineStep(values, [at, at + groupSize], { bits, grid, mse });
      const group = (first + at) / groupSize;
      scales[group] = step.scale;
      if (zeros !== undefined) zeros[group] = step.zero;
      for (let i = at; i < at + groupSize; i++) run[i] = affineCode(values[i]!, step, bits);
    }
    codes.set(packBits(run, { bits }), (first * bits) / 8);
  };
  await forEachRun(shape, rows, encodeRun, { multiple: 8 });
  return { codes, scales, ...(zeros === undefined ? {} : { zeros }) };
}

/** @throws NumericError that names the entry */
export function expectFinite(values: Float32Array, name: string, width: number, first = 0): void {
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]!) < Infinity) continue;
    throw notFinite(name, values[i]!, [Math.floor((first + i) / width), (first + i) % width]);
  }
}
