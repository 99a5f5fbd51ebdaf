import { ConfigError, denseParameter, StateError } from '@niwaki/tensor';
import { denseWeight, type Weight } from '@niwaki/weights';
import type { AdapterSet, Model, Site } from '@niwaki/nn';
import { isFloat } from './float-weight.ts';
import type { Initializer } from './initialization.ts';
import type { LoraAdapter } from './lora-adapter.ts';

// A start may rewrite the base: the set and what it left of each matrix belong together. While the set is on the model,
// the base alone is not what was loaded, also under a view without adapters. Taking the set off with deleteAdapter puts
// W back where it can be had (f32 rounding apart); where the rest is quantized, the codes stay.

/** @throws ConfigError where the start cannot rewrite the site's matrix */
export function checkRewritable(site: Site, { name }: Initializer, model: Model): void {
  const { path, point } = site;
  const weight = site.weight!;
  if (point !== 'linear')
    throw new ConfigError(`${name} rewrites the matrix of linear maps, '${path}' is a ${point}`, {
      path,
      point,
      help: 'Leave it out of `at`, or give it a set of its own.',
    });
  if (!isFloat(weight))
    throw new ConfigError(`${name} needs the float matrix of '${path}', which is stored as ${weight.kind}`, {
      path,
      kind: weight.kind,
      help: 'Start from a model that is not quantized yet, and pass the quantizer: pissa({ quantizer: nf4() }).',
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
  { rewrites, merged }: { readonly rewrites: boolean; readonly merged: readonly string[] },
): void {
  if (rewrites && merged.length > 0)
    throw new StateError(`adapters are merged (${merged.join(', ')}), and the weights under them cannot be rewritten`, {
      merged,
      help: 'Call unmergeAdapter, or forgetOriginals to make the merge one for good.',
    });
  for (const set of model.adapters.values()) {
    const path = paths.find((candidate) => {
      const other = set.sites.get(candidate);
      return other !== undefined && (rewrites || other.startsFrom === 'rewritten');
    });
    if (path === undefined) continue;
    throw new StateError(
      rewrites
        ? `'${path}' has the adapter '${set.name}', and rewriting the matrix would change what that one does`
        : `'${path}' belongs to adapter '${set.name}', which rewrote its matrix`,
      { path, name: set.name, help: `Merge '${set.name}' for good (mergeAndUnload), or delete it first.` },
    );
  }
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
    const { original } = adapter as LoraAdapter;
    const [site] = original === undefined ? [] : model.sites((candidate) => candidate.path === path);
    if (site !== undefined) weights.set(path, denseWeight(denseParameter(`${path}.weight`, original!(site.weight!), { role: 'matrix' })));
  }
  putWeights(model, weights);
}
