import type { FrozenMatrix } from '@niwaki/tensor';
import type { Call } from './call.ts';
import type { Weight } from './weight.ts';

type Read = (weight: Weight, call: Call) => FrozenMatrix | undefined;

/** By the function, not by the weight: whoever puts another `apply` in its place leaves this behind. */
const reads = new WeakMap<Weight['apply'], Read>();

/** An `apply` that is x·Wᵀ and nothing else, wherever `read` gives the matrix: no part of it trains, and nobody wants its gradient. */
export function asProduct(apply: Weight['apply'], read: Read): Weight['apply'] {
  reads.set(apply, read);
  return apply;
}

/** The matrix that `apply` multiplies with and does no more, for an op that multiplies and goes on; undefined where there is more to it. */
export const frozenMatrix = (weight: Weight, call: Call): FrozenMatrix | undefined =>
  call.wants(weight) ? undefined : reads.get(weight.apply)?.(weight, call);
