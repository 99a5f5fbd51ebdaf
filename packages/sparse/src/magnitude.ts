import { checkOptions, ConfigError } from '@niwaki/tensor';
import { defineMethod } from '@niwaki/engine';
import type { Site } from '@niwaki/nn';
import { isNOfM } from './amount.ts';
import { clearBelow, clearSmallest, cut, keepByRows } from './keep-entries.ts';
import {
  checkSite,
  hostMatrix,
  prunedWeight,
  pruneNames,
  pruneOptions,
  prunerTraits,
  type PruneMethodOptions,
  type Pruner,
} from './pruner.ts';

export interface MagnitudeOptions extends PruneMethodOptions {
  /**
   * Where entries compete: 'layer' (default) within a matrix, 'row' within a row, 'global' among all selected matrices,
   * some of which then lose much more than others. With n and m, groups compete alone.
   */
  readonly scope?: 'row' | 'layer' | 'global';
}

/** For each site, what goes: all below, and so many of the entries that are equal. */
type Cuts = ReadonlyMap<string, { readonly threshold: number; readonly ties: number }>;

/**
 * Takes the smallest entries away; no data needed. Of equal ones the first goes.
 * Memory: 9 bytes an entry of one matrix on the host; scope 'global' 4 bytes an entry of all of them.
 * @throws ConfigError for options out of range; NumericError for a matrix that is not finite
 * @example await prune(model, magnitude({ sparsity: 0.5 }))
 */
export function magnitude(options: MagnitudeOptions = {}): Pruner {
  checkOptions('magnitude', options, [...pruneNames, 'scope']);
  const { amount, store, named } = pruneOptions('magnitude', options);
  if (isNOfM(amount) && options.scope !== undefined) {
    throw new ConfigError(`magnitude: with n and m groups compete alone, scope '${options.scope}' has no meaning`, {
      scope: options.scope,
    });
  }
  const { scope = 'layer' } = options;
  if (!['row', 'layer', 'global'].includes(scope)) {
    throw new ConfigError(`magnitude: scope must be 'row', 'layer' or 'global', got ${JSON.stringify(scope)}`, { scope });
  }
  const scores = (values: Float32Array): Float32Array => values.map(Math.abs);

  const method = defineMethod({
    kind: 'magnitude',
    options: { ...named, ...(isNOfM(amount) ? {} : { scope }) },
    traits: prunerTraits(store),
    makes: 'weight',
    validate: (site) => checkSite(site, amount),
    plan: async (sites: readonly Site[]): Promise<{ readonly cuts?: Cuts }> =>
      isNOfM(amount) || scope !== 'global' ? {} : { cuts: await globalCuts(sites, amount.sparsity) },
    make: async (site, { cuts }) => {
      const { values, shape, path } = await hostMatrix(site);
      const all = scores(values);
      if (isNOfM(amount) || scope === 'row') {
        return { weight: await prunedWeight(site, values, keepByRows(all, shape, amount), { amount, store }) };
      }
      const kept = new Uint8Array(all.length).fill(1);
      const own = (cuts as Cuts | undefined)?.get(path);
      const range = { from: 0, to: all.length };
      if (own === undefined) clearSmallest(all, kept, { ...range, count: Math.floor(all.length * amount.sparsity) });
      else clearBelow(all, kept, { ...range, ...own });
      return { weight: await prunedWeight(site, values, kept, { amount, store }) };
    },
  });
  return { ...method, choice: { amount, scores: ({ values }) => scores(values) } } as Pruner;
}

/** One threshold for all sites; of the entries equal to it, the first ones in the model's order go. */
async function globalCuts(sites: readonly Site[], sparsity: number): Promise<Cuts> {
  const total = sites.reduce((sum, { weight }) => sum + weight!.shape[0] * weight!.shape[1], 0);
  const all = new Float32Array(total);
  const starts: number[] = [];
  let at = 0;
  for (const site of sites) {
    starts.push(at);
    const { values } = await hostMatrix(site);
    for (const value of values) all[at++] = Math.abs(value);
  }
  const count = Math.floor(total * sparsity);
  if (count === 0) return new Map(sites.map(({ path }) => [path, { threshold: -1, ties: 0 }]));
  const { threshold, ties } = cut(all.slice().sort(), count);
  let left = ties;
  return new Map(
    sites.map(({ path }, i) => {
      const own = all.subarray(starts[i], starts[i + 1] ?? total);
      const equal = own.reduce((found, value) => found + (value === threshold ? 1 : 0), 0);
      const taken = Math.min(left, equal);
      left -= taken;
      return [path, { threshold, ties: taken }];
    }),
  );
}
