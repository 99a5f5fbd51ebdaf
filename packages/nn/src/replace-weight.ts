import { ConfigError, conflictsOf, refuse, ShapeError, type Parameter } from '@niwaki/tensor';
import { weightTraits, type ActivationQuantizer, type Weight } from '@niwaki/weights';
import type { Point, ReplaceOptions, Site } from './graph.ts';
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
  if (!keep && old !== undefined && old !== weight) disposeUnused(old.parts, sites);
}

/** Places that are given rows to multiply with something. */
const multiplies: ReadonlySet<Point> = new Set(['linear', 'conv', 'head', 'operand']);

/** `Model.replaceInput` over all places of a model; changes nothing where it throws. */
export function replaceInput(
  site: Site,
  places: readonly Site[],
  input: ActivationQuantizer | undefined,
  { keep }: { readonly keep?: boolean },
): void {
  const { path, point, input: old } = site;
  if (!multiplies.has(point)) {
    throw new ConfigError(`'${path}' (${point}) multiplies no rows that could be rounded`, {
      path,
      point,
      help: 'Name linear maps, the head, or operands of attention.',
    });
  }
  if (input === undefined) delete site.input;
  else site.input = input;
  if (!keep && old !== undefined && old !== input) disposeUnused(old.parts, places);
}

/** A new weight may be built around parts of the old one (a mask over it): those live on. */
function disposeUnused(parts: Readonly<Record<string, Parameter>>, sites: readonly Site[]): void {
  const used = new Set(sites.flatMap(ofSite));
  for (const part of Object.values(parts)) if (!used.has(part)) part.dispose();
}
