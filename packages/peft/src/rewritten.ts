import { ConfigError, denseParameter, refuse, StateError } from '@niwaki/tensor';
import { check } from '@niwaki/engine';
import { denseWeight, type Weight } from '@niwaki/weights';
import { adapterParty, type AdapterSet, type Model, type Site } from '@niwaki/nn';
import type { AdapterMethod, RewritingAdapter } from './adapter-method.ts';
import { BaseModelError } from './files/errors.ts';

// A start may rewrite the base: the set and what it left of each matrix belong together. While the set is on the model,
// the base alone is not what was loaded, also under a view without adapters. Taking the set off with deleteAdapter puts
// W back where it can be had (f32 rounding apart); where the rest is quantized, the codes stay.

/** @throws ConfigError where the site is no linear map of its own */
export function checkRewritable(site: Site, { name }: { readonly name: boolean | string }, model: Model): void {
  const { path, point } = site;
  const weight = site.weight!;
  if (point !== 'linear')
    throw new ConfigError(`${name} rewrites the matrix of linear maps, '${path}' is a ${point}`, {
      path,
      point,
      help: 'Leave it out of `at`, or give it a set of its own.',
    });
  const tied = model.sites((other) => other.weight === weight).find((other) => other !== site);
  if (tied !== undefined)
    throw new ConfigError(`${name} would rewrite '${tied.path}' too, which shares the matrix of '${path}'`, { path, tiedTo: tied.path });
}

/**
 * Sets that rewrite a base share its sites with nobody: what the other set computes would move under it.
 * @param merged names of sets that are in the weights now
 * @throws StateError naming both
 */
export function refuseShared(
  model: Model,
  paths: readonly string[],
  { method, merged }: { readonly method: AdapterMethod; readonly merged: readonly string[] },
): void {
  if ((method.rewrites !== undefined || method.unitOrder === 'changed') && merged.length > 0)
    throw new StateError(`adapters are merged (${merged.join(', ')}), and the weights under them cannot be rewritten`, {
      merged,
      help: 'Call unmergeAdapter, or forgetOriginals to make the merge one for good.',
    });
  for (const { name, sites } of model.adapters.values()) {
    for (const path of paths) {
      const other = sites.get(path);
      if (other === undefined) continue;
      refuse(check({ adapters: [adapterParty(name, path, other)], methods: [method] }), { path, name }, StateError);
    }
  }
}

/** @throws BaseModelError for an adapter whose rows and columns are those of another order of heads or channels */
export function refuseReordered({ couplings }: Model, paths: readonly string[], { unitOrder }: AdapterMethod): void {
  if (unitOrder !== undefined) return;
  const moved = new Set(
    couplings.flatMap(({ order, source, along, readers }) =>
      order === undefined ? [] : [...[source, ...along].map(({ path }) => path), ...readers],
    ),
  );
  const path = paths.find((candidate) => moved.has(candidate));
  if (path === undefined) return;
  throw new BaseModelError(`the heads or channels of '${path}' were permuted on this model, and the adapter is for the order of its file`, {
    path,
    help: 'Load the model anew for it.',
  });
}

/** Puts weights where the set that was just attached expects them. Cannot fail; the old ones are disposed. */
export function putWeights(model: Model, weights: ReadonlyMap<string, Weight>): void {
  for (const [path, weight] of weights) {
    const [site] = model.sites(path) as [Site];
    if (weight.matrix !== undefined) weight.matrix.trainable = site.weight!.matrix?.trainable ?? false;
    model.replace(path, weight);
  }
}

/** Gives a site back what a set that is leaving took out of its matrix, in f32. */
export function putBack(model: Model, { sites }: AdapterSet): void {
  const weights = new Map<string, Weight>();
  for (const [path, adapter] of sites) {
    const { original } = adapter as RewritingAdapter;
    const [site] = original === undefined ? [] : model.sites((candidate) => candidate.path === path);
    if (site !== undefined) weights.set(path, denseWeight(denseParameter(`${path}.weight`, original!(site.weight!), { role: 'matrix' })));
  }
  putWeights(model, weights);
}
