import type { Party, Token, Traits } from '@niwaki/tensor';
import type { Transform } from './transform.ts';

/** What a transform needs and does: read off what it has, and what it declares. */
export function transformTraits({ measure, prepare, traits = {} }: Pick<Transform, 'measure' | 'prepare' | 'traits'>): Traits {
  const needs: Token[] = [...(traits.needs ?? []), ...(measure === undefined ? [] : (['global-norm'] as const))];
  const gives: Token[] = [...(traits.gives ?? []), ...(prepare === undefined ? [] : (['host-work'] as const))];
  return { ...traits, ...(needs.length > 0 && { needs }), ...(gives.length > 0 && { gives }) };
}

export const transformParty = (transform: Transform): Party => ({ name: `'${transform.name}'`, traits: transformTraits(transform) });
