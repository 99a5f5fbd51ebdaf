import { add, ConfigError, mul } from '@niwaki/tensor';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

/**
 * Decoupled weight decay (Loshchilov & Hutter 2019): the value shrinks by 1 - rate · weightDecay before the update is
 * added, wherever this stands in a chain. No state.
 * @param options `rateScale`: multiplies the rate, as in `scaleByLearningRate`
 */
export function addDecayedWeights(weightDecay: number, { rateScale = 1 }: { rateScale?: number } = {}): Transform<Record<never, never>> {
  checkDecay(weightDecay);
  return {
    name: 'decay',
    init: () => ({}),
    update: (update, state, { rate }) => ({
      update,
      state,
      ...(weightDecay === 0 ? {} : { how: { decay: rate * rateScale * weightDecay } }),
    }),
  };
}

/** The gradient of ½ · weightDecay · ‖value‖², added to the gradient: what `weight_decay` means in torch's SGD. No state. */
export function addL2(weightDecay: number): Transform<Record<never, never>> {
  checkDecay(weightDecay);
  return {
    name: 'l2',
    init: () => ({}),
    update: (gradient, state, { parameter }) => ({
      update: weightDecay === 0 ? gradient : dense(add(valueOf(gradient), mul(parameter.read(), weightDecay))),
      state,
    }),
  };
}

function checkDecay(weightDecay: number): void {
  if (!(weightDecay >= 0)) throw new ConfigError(`weightDecay must not be negative, got ${weightDecay}`, { weightDecay });
}
