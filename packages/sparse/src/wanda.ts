import { checkOptions, type Tensor1D } from '@niwaki/tensor';
import { defineMethod } from '@niwaki/engine';
import { keepByRows } from './keep-entries.ts';
import { inputSquares } from './input-statistics.ts';
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

export type WandaOptions = PruneMethodOptions;

/**
 * Wanda (Sun et al. 2024, 2306.11695): an entry counts |w| · ‖x‖ of its input column; in each row, or each group of m, the
 * least go. What is kept stays as it is. Blocks are pruned one after another, each by what the pruned ones before it give.
 * Memory: 4 · in bytes of statistics for each input of a block, 9 bytes an entry of one matrix on the host. Embeddings have
 * no input and are refused.
 * @throws ConfigError for options out of range or without calibration batches; NumericError for a matrix that is not finite
 * @example await prune(model, wanda({ n: 2, m: 4 }), { calibrate: { batches } })
 */
export function wanda(options: WandaOptions = {}): Pruner {
  checkOptions('wanda', options, pruneNames);
  const { amount, store, named } = pruneOptions('wanda', options);
  const collect = { squares: inputSquares() };
  const scores = async (matrix: HostMatrix, statistics: Readonly<Record<string, unknown>>): Promise<Float32Array> =>
    wandaScores(matrix, await (statistics['squares'] as Tensor1D).data());
  const method = defineMethod({
    kind: 'wanda',
    options: named,
    traits: prunerTraits(store),
    makes: 'weight',
    collect,
    walk: { advance: 'current' },
    validate: (site) => checkSite(site, amount),
    make: async (site, _, statistics) => {
      const matrix = await hostMatrix(site);
      const kept = keepByRows(await scores(matrix, statistics!), matrix.shape, amount);
      return { weight: await prunedWeight(site, matrix.values, kept, { amount, store }) };
    },
  });
  return { ...method, choice: { amount, collect, scores } };
}

/** |w| · ‖x‖ by column. @param squares squared norms [in] */
export function wandaScores({ values, shape: [, width] }: Pick<HostMatrix, 'values' | 'shape'>, squares: ArrayLike<number>): Float32Array {
  const norms = Float32Array.from(squares, Math.sqrt);
  return values.map((value, e) => Math.abs(value) * norms[e % width]!);
}
