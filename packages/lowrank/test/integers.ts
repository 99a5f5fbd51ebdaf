import { defineMethod, type Method } from '@niwaki/engine';
import { affine, affineGroupSize, encodeAffine, rowsOf } from '@niwaki/weights';
import type { AffineBits } from '@niwaki/tensor';

/** Rounding to integers as a quantizer to pass on, for tests of what takes one. */
export const integers = (bits: AffineBits, groupSize: number): Method =>
  defineMethod({
    kind: 'integers',
    options: { bits, groupSize },
    traits: {},
    makes: 'weight',
    validate: ({ path, weight }) => void affineGroupSize(groupSize, weight!.shape[1], path),
    make: async ({ path, weight }) => {
      const parts = await encodeAffine(`${path}.weight`, weight!.shape, rowsOf(weight!), { bits, groupSize, grid: 'asymmetric' });
      return { weight: affine(path, weight!.shape, parts, { bits, groupSize }) };
    },
  });
