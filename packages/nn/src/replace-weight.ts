import { conflictsOf, refuse, ShapeError } from '@niwaki/tensor';
import { weightTraits, type Weight } from '@niwaki/weights';
import type { ReplaceOptions, Site } from './graph.ts';
import { ofSite } from './stage-parameters.ts';
import { siteParty } from './traits.ts';

/** `Model.replace` over the sites of a model; changes nothing where it throws. */
export function replaceWeight(site: Site, sites: readonly Site[], weight: Weight, { keep, untie, bias }: ReplaceOptions): void {
  const old = site.weight;
  if (old !== undefined && old.shape.join() !== weight.shape.join()) {
    throw new ShapeError(`'${site.path}' holds a matrix [${old.shape}], got [${weight.shape}]`, {
      path: site.path,
      expected: old.shape,
      given: weight.shape,
    });
  }
  const group = old === undefined ? [site] : sites.filter((other) => other.weight === old);
  const targets = untie ? [site] : group;
  const lookup = targets.find((target) => target.point === 'embedding');
  if (lookup !== undefined) {
    const given = { name: `a ${weight.kind} weight`, traits: weightTraits(weight) };
    refuse(conflictsOf(siteParty(lookup), given, 'site'), { path: lookup.path, kind: weight.kind });
  }
  if (bias !== undefined && site.bias !== undefined && bias.shape.join() !== site.bias.shape.join()) {
    throw new ShapeError(`'${site.path}' has a bias [${site.bias.shape}], got [${bias.shape}]`, {
      path: site.path,
      expected: site.bias.shape,
      given: bias.shape,
    });
  }
  for (const target of targets) target.weight = weight;
  if (bias !== undefined) {
    if (bias !== site.bias) site.bias?.dispose();
    site.bias = bias;
  }
  if (!keep && old !== undefined && old !== weight) disposeUnused(old, sites);
}

/** A new weight may be built around parts of the old one (a mask over it): those live on. */
function disposeUnused(old: Weight, sites: readonly Site[]): void {
  const used = new Set(sites.flatMap(ofSite));
  for (const part of Object.values(old.parts)) if (!used.has(part)) part.dispose();
}
