import { checkOptions, ConfigError, type Tensor2D } from '@niwaki/tensor';
import { createBreath, defineMethod, inputGram } from '@niwaki/engine';
import { isNOfM } from './amount.ts';
import { eliminate } from './eliminate.ts';
import {
  checkSite,
  hostMatrix,
  prunedWeight,
  pruneNames,
  pruneOptions,
  prunerTraits,
  type HostMatrix,
  type PruneMethodOptions,
  type Pruner,
} from './pruner.ts';
import { momentsCache } from './moments-cache.ts';

export interface SparseGptOptions extends PruneMethodOptions {
  /** Added to the diagonal of the input's second moments, as a part of its mean; default 0.01. */
  readonly damping?: number;
  /** Columns whose entries compete with one another; default 128. With n and m, a multiple of m. */
  readonly blockSize?: number;
}

/**
 * SparseGPT (Frantar & Alistarh 2023, 2301.00774): takes entries away block of columns by block, and lets the columns to
 * come make up for them, so that the outputs on the calibration data move least.
 * Memory: in² doubles twice and 17 bytes an entry of one matrix on the host, 4 · in² bytes on the device. Work: in³/3 for
 * each input, out · in²/2 multiply-adds times the sparsity a matrix, on the host.
 * @throws ConfigError for options out of range or without calibration batches; NumericError for a matrix that is not
 * finite, or second moments that are not positive definite
 * @example await prune(model, sparsegpt({ sparsity: 0.6 }), { calibrate: { batches } })
 */
export function sparsegpt(options: SparseGptOptions = {}): Pruner {
  checkOptions('sparsegpt', options, [...pruneNames, 'damping', 'blockSize']);
  const { amount, store, named } = pruneOptions('sparsegpt', options);
  const { damping = 0.01, blockSize = 128 } = options;
  if (!(damping > 0 && damping < 1)) throw new ConfigError(`sparsegpt: damping must be between 0 and 1, got ${damping}`, { damping });
  const multiple = isNOfM(amount) ? amount.m : 1;
  if (!(Number.isInteger(blockSize) && blockSize >= 1 && blockSize % multiple === 0)) {
    throw new ConfigError(
      `sparsegpt: blockSize must be a whole number from 1${multiple > 1 ? `, a multiple of ${multiple}` : ''}, got ${blockSize}`,
      { blockSize },
    );
  }
  const collect = { gram: inputGram() };
  const breath = createBreath();
  const momentsOf = momentsCache({ damping, breath });
  const moments = (statistics: Readonly<Record<string, unknown>>): ReturnType<typeof momentsOf> =>
    momentsOf(statistics['gram'] as Tensor2D);

  const method = defineMethod({
    kind: 'sparsegpt',
    options: { ...named, damping, blockSize },
    traits: prunerTraits(store),
    makes: 'weight',
    collect,
    walk: { advance: 'current' },
    validate: (site) => checkSite(site, amount),
    make: async (site, _, statistics) => {
      const { factor, dead } = await moments(statistics!);
      const { shape, values } = await hostMatrix(site);
      const [out, n] = shape;
      const w = Float64Array.from(values);
      for (const column of dead) for (let row = 0; row < out; row++) w[row * n + column] = 0;
      const kept = await eliminate(w, factor, { shape, amount, blockSize, breath });
      return { weight: await prunedWeight(site, w, kept, { amount, store }) };
    },
  });

  /** What it costs to take an entry away alone, before anything is moved: w² / U². */
  const scores = async ({ values, shape: [, n] }: HostMatrix, statistics: Readonly<Record<string, unknown>>): Promise<Float64Array> => {
    const { factor, dead } = await moments(statistics);
    const gone = new Set(dead);
    return Float64Array.from(values, (value, e) => (gone.has(e % n) ? 0 : (value / factor[(e % n) * (n + 1)]!) ** 2));
  };
  return { ...method, choice: { amount, collect, scores } };
}
