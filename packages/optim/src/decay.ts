import { add, checkOneOf, checkOptions, mul } from '@niwaki/tensor';
import { dense, valueOf } from './dense-update.ts';
import { groups, valueFor, type PerParameter } from './groups.ts';
import type { Transform } from './transform.ts';

/** Whether a value shrinks before its update is added (torch's AdamW), or with it (bitsandbytes on GPUs, GaLore): a difference of rate² · weightDecay. */
export type DecayOrder = 'before' | 'after';

/**
 * Decoupled weight decay (Loshchilov & Hutter 2019): the value shrinks by 1 - rate · weightDecay before the update is
 * added, wherever this stands in a chain. No state.
 * @param options `rateScale`: multiplies the rate, as in `scaleByLearningRate`; `order`: 'after' shrinks the updated value
 */
export function addDecayedWeights(
  weightDecay: PerParameter,
  options: { rateScale?: PerParameter; order?: DecayOrder } = {},
): Transform<Record<never, never>> {
  checkOptions('addDecayedWeights', options, ['rateScale', 'order']);
  const { rateScale = 1, order = 'before' } = options;
  if (typeof weightDecay === 'number') groups([], { weightDecay });
  checkOneOf('decay', 'decayOrder', order, ['before', 'after']);
  return {
    name: 'decay',
    options: { weightDecay, rateScale, order },
    init: () => ({}),
    update: (update, state, { rate, parameter }) => {
      const decay = rate * valueFor(rateScale, parameter) * valueFor(weightDecay, parameter);
      if (decay === 0) return { update, state };
      return { update, state, how: order === 'before' ? { decay } : { decay, scale: 1 - decay } };
    },
  };
}

/** The gradient of ½ · weightDecay · ‖value‖², added to the gradient: what `weight_decay` means in torch's SGD. No state. */
export function addL2(weightDecay: PerParameter): Transform<Record<never, never>> {
  if (typeof weightDecay === 'number') groups([], { weightDecay });
  return {
    name: 'l2',
    options: { weightDecay },
    init: () => ({}),
    update: (gradient, state, { parameter }) => {
      const factor = valueFor(weightDecay, parameter);
      return { update: factor === 0 ? gradient : dense(add(valueOf(gradient), mul(parameter.read(), factor))), state };
    },
  };
}
