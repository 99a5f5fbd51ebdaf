import { checkOptions } from '@niwaki/tensor';
import { defineMethod, roundsFloats, type Method } from '@niwaki/engine';
import { affine, affineGroupSize, encodeAffine, rowsOf } from '@niwaki/weights';
import { checkIntegerSite, integerNames, integerOptions, type IntegerOptions } from './affine-options.ts';

export type RtnOptions = IntegerOptions;

/**
 * Rounds to the nearest integer code, group by group, without data. Bits an entry: bits + 32 / groupSize, and 8 / groupSize
 * more where it is asymmetric. `rtn({ bits: 8, groupSize: 'row', symmetric: true })` is int8 with one scale a row.
 * Memory while quantizing: the codes, and a few MiB of rows.
 * @throws ConfigError for options out of range, or a group that does not divide the rows of a site
 * @example await quantize(model, rtn({ bits: 4, groupSize: 64 }))
 */
export function rtn(options: RtnOptions = {}): Method {
  checkOptions('rtn', options, integerNames);
  const { grid, ...named } = integerOptions('rtn', options);
  const { bits, groupSize, mse } = named;
  return defineMethod({
    kind: 'rtn',
    options: named,
    traits: { ...roundsFloats, gives: ['encode', 'lookup'] },
    makes: 'weight',
    validate: (site) => checkIntegerSite(site, groupSize),
    make: async ({ path, weight }) => {
      const shape = weight!.shape;
      const size = affineGroupSize(groupSize, shape[1], path);
      const parts = await encodeAffine(`${path}.weight`, shape, rowsOf(weight!), { bits, groupSize: size, grid, mse });
      return { weight: affine(path, shape, parts, { bits, groupSize: size, grid }) };
    },
  });
}
