import { ConfigError, type AffineBits } from '@niwaki/tensor';
import { affineGroupSize, checkAffine, type AffineGrid } from '@niwaki/weights';
import type { Site } from '@niwaki/nn';

export interface IntegerOptions {
  /** Bits of one code: 2, 3, 4 or 8; default 4. */
  readonly bits?: AffineBits;
  /**
   * Entries of a row that share a scale: a multiple of 8 that divides the row, or 'row' for all of it; default 64, half of
   * the papers' 128, which rows of small models are no multiples of.
   */
  readonly groupSize?: number | 'row';
  /**
   * false (default): a zero a group, the range from the least value to the greatest. true: no zeros, scale =
   * max |w| / (2^(bits-1) - 1). 'gptq' and 'torchao': no zeros, scale = 2 max |w| / (2^bits - 1), as those two write it.
   */
  readonly symmetric?: boolean | 'gptq' | 'torchao';
  /** Shrink a group's range where that makes its errors smaller, the largest of them counted more; default false. */
  readonly mse?: boolean;
}

export const integerNames = ['bits', 'groupSize', 'symmetric', 'mse'] as const;

const grids = new Map<unknown, AffineGrid>([
  [false, 'asymmetric'],
  [true, 'absmax'],
  ['gptq', 'gptq'],
  ['torchao', 'torchao'],
]);

/** What all integer methods take, checked, with defaults filled in. */
export function integerOptions(
  kind: string,
  { bits = 4, groupSize = 64, symmetric = false, mse = false }: IntegerOptions,
): {
  readonly bits: AffineBits;
  readonly groupSize: number | 'row';
  readonly symmetric: boolean | 'gptq' | 'torchao';
  readonly mse: boolean;
  readonly grid: AffineGrid;
} {
  const grid = grids.get(symmetric);
  if (grid === undefined) {
    throw new ConfigError(`${kind}: symmetric must be true, false, 'gptq' or 'torchao', got ${JSON.stringify(symmetric)}`, { symmetric });
  }
  checkAffine({ bits, grid });
  if (groupSize !== 'row' && !(Number.isInteger(groupSize) && groupSize > 0)) {
    throw new ConfigError(`${kind}: groupSize must be a whole number from 1, or 'row', got ${String(groupSize)}`, { groupSize });
  }
  if (typeof mse !== 'boolean') throw new ConfigError(`${kind}: mse must be true or false, got ${String(mse)}`, { mse });
  return { bits, groupSize, symmetric, mse, grid };
}

/** Whether a site's matrix can be stored in groups of this size. Allocates nothing. */
export function checkIntegerSite({ path, weight }: Site, groupSize: number | 'row'): void {
  if (weight === undefined) throw new ConfigError(`'${path}' stores no matrix to quantize`, { path });
  affineGroupSize(groupSize, weight.shape[1], path);
}
