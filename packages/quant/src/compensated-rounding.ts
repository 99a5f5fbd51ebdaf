import type { AffineBits } from '@niwaki/tensor';
import { affineCode, affineStep, affineValue, type AffineGrid, type AffineStep } from '@niwaki/weights';

/** Added to the diagonal of the input's second moments, as a part of its mean, where nobody says otherwise. */
export const usualDamping = 0.01;

export interface CompensatedRounding {
  /** One code an entry, unpacked. */
  readonly codes: Uint8Array;
  readonly steps: readonly AffineStep[];
  /** Half the squared output error that was accepted, (w - q)·H·(w - q)ᵀ / 2 summed over the rows. */
  readonly loss: number;
}

export interface CompensatedRoundingOptions {
  readonly shape: readonly [out: number, in_: number];
  readonly bits: AffineBits;
  readonly groupSize: number;
  readonly grid: AffineGrid;
  readonly mse?: boolean;
  /** Steps decided beforehand, [out, groups]; default: of the compensated values as each group begins. */
  readonly steps?: readonly AffineStep[];
  /** With `steps`: the group of each column; default runs of `groupSize`. */
  readonly groupOf?: Int32Array;
  /** With `steps`: the whole number below each entry as it was, [out, in]; its code is that or the next one. Default: any. */
  readonly below?: Int32Array;
  readonly breath: () => Promise<void>;
}

/**
 * The core of GPTQ (Frantar et al. 2023, algorithm 1): rounds column by column, and moves the error of each onto the
 * columns that are still to come, as the inverse of the input's second moments says.
 * @param w [out, in] row-major; overwritten by what was to be rounded after compensation
 * @param u upper factor of `inverseFactor`
 */
export async function compensatedRounding(
  w: Float64Array,
  u: Float64Array,
  options: CompensatedRoundingOptions,
): Promise<CompensatedRounding> {
  const { shape, bits, groupSize, grid, mse = false, groupOf, below, breath } = options;
  const most = 2 ** bits - 1;
  const [out, n] = shape;
  const groups = n / groupSize;
  const codes = new Uint8Array(out * n);
  const steps: AffineStep[] = options.steps === undefined ? Array.from({ length: out * groups }) : [...options.steps];
  // A block holds whole groups, or lies in one that began with the row: a group's values are compensated when it is read.
  const blockSize = groupSize < n ? groupSize * Math.ceil(128 / groupSize) : 128;
  const errors = new Float64Array(blockSize);
  let loss = 0;
  for (let from = 0; from < n; from += blockSize) {
    const to = Math.min(n, from + blockSize);
    for (let row = 0; row < out; row++) {
      const base = row * n;
      for (let i = from; i < to; i++) {
        const group = row * groups + (groupOf?.[i] ?? Math.floor(i / groupSize));
        if (options.steps === undefined && i % groupSize === 0) {
          steps[group] = affineStep(w, [base + i, base + i + groupSize], { bits, grid, mse });
        }
        const step = steps[group]!;
        const nearest = affineCode(w[base + i]!, step, bits);
        const code = below === undefined ? nearest : between(nearest, below[base + i]!, most);
        codes[base + i] = code;
        const error = (w[base + i]! - affineValue(code, step)) / u[i * n + i]!;
        errors[i - from] = error;
        loss += (error * error) / 2;
        for (let j = i + 1; j < to; j++) w[base + j]! -= error * u[i * n + j]!;
      }
      for (let i = from; i < to; i++) {
        const error = errors[i - from]!;
        if (error === 0) continue;
        for (let j = to; j < n; j++) w[base + j]! -= error * u[i * n + j]!;
      }
      await breath();
    }
  }
  return { codes, steps, loss };
}

/** The nearer of two codes that follow one another, as far as they are codes. */
const between = (nearest: number, below: number, most: number): number =>
  Math.min(Math.max(Math.min(Math.max(nearest, below), below + 1), 0), most);
