import { conflictsOf, rivalry, type Conflict, type Party, type Token, type Traits } from '@niwaki/tensor';
import { weightTraits } from '@niwaki/weights';
import type { Adapter, Point, Site } from './graph.ts';

const ofMatrices: ReadonlySet<Point> = new Set(['linear', 'conv', 'embedding', 'head']);

/** A site as it is, or as it was. */
export type Place = Pick<Site, 'path' | 'point'> & { readonly [K in 'weight' | 'bias']?: Site[K] | undefined };

/** What a site gives with what it stores now, and what it needs of that. */
export function siteTraits({ point, weight, bias }: Place): Traits {
  const { gives: stored = [], needs: own = [] } = weight === undefined ? {} : weightTraits(weight);
  const gives: Token[] = [...stored];
  // What needs them is in the way of whoever else does.
  if (!own.includes('base-values')) gives.push('base-values');
  if (point !== 'embedding') gives.push('inputs');
  if (bias !== undefined) gives.push('bias');
  const needs: Token[] = point === 'embedding' ? [...own, 'lookup'] : [...own];
  return { gives, ...(needs.length > 0 && { needs }) };
}

export const siteParty = (site: Place): Party => ({
  name: site.weight === undefined ? `'${site.path}'` : `'${site.path}' (${site.weight.kind})`,
  traits: siteTraits(site),
});

/** What an adapter gives, read off what it has, and what it stands on. Around a module there is no matrix to change. */
export function adapterTraits({ point, delta, merge, prompt, replaces, startsFrom }: Adapter): Traits {
  if (replaces !== undefined) return { gives: ['merge'] };
  if (!ofMatrices.has(point) || prompt !== undefined) return {};
  const gives: Token[] = [];
  if (merge !== undefined || delta !== undefined) gives.push('merge');
  if (delta !== undefined) gives.push('delta');
  return startsFrom === 'rewritten' ? { gives, claims: ['base-values'] } : { gives, needs: ['base-values'] };
}

/** @param name of the set */
export const adapterParty = (name: string, path: string, adapter: Adapter): Party => ({
  name: `adapter '${name}' (${adapter.kind}) at '${path}'`,
  traits: adapterTraits(adapter),
});

const mixing: Party = { name: 'a batch with an adapter for each row', traits: { needs: ['delta', 'base-values'] } };

/** Why rows of one batch cannot have different adapters, this one among them. */
export const conflictsOfMixing = (adapter: Party): readonly Conflict[] => [
  ...conflictsOf(mixing, adapter, 'adapter'),
  ...rivalry(adapter, mixing),
];
