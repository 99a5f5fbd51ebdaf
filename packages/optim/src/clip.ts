import { add, clipByValue, div, minimum, mul, outOfRange, sqrt, square, StateError, sum, type Scalar } from '@niwaki/tensor';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

/**
 * Scales all gradients of a step so that their joint L2 norm is at most `maxNorm` (Pascanu et al. 2013), as torch's
 * clip_grad_norm_: times min(1, maxNorm / (norm + 1e-6)). Every gradient of the step is held until the norm is known.
 */
export function clipByGlobalNorm(maxNorm: number): Transform<Record<never, never>> {
  if (!(maxNorm > 0)) throw outOfRange('clipByGlobalNorm', 'maxNorm', maxNorm, 'above 0');
  return {
    name: 'clip',
    options: { maxNorm },
    init: () => ({}),
    measure: (gradient) => sum(square(valueOf(gradient))) as Scalar,
    update: (gradient, state, { total, parameter }) => {
      if (total === undefined) {
        throw new StateError(`clipByGlobalNorm needs the gradients of the whole step, '${parameter.path}' came alone`, {
          path: parameter.path,
          help: "Use commit: 'step', or clip entry by entry.",
        });
      }
      return { update: dense(mul(valueOf(gradient), minimum(div(maxNorm, add(sqrt(total), 1e-6)), 1))), state };
    },
  };
}

/** Bounds every entry of a gradient by ±limit. No state, and no gradient needs to wait for another. */
export function clipByEntry(limit: number): Transform<Record<never, never>> {
  if (!(limit > 0)) throw outOfRange('clipByEntry', 'limit', limit, 'above 0');
  return {
    name: 'clip-entries',
    options: { limit },
    init: () => ({}),
    update: (gradient, state) => ({ update: dense(clipByValue(valueOf(gradient), -limit, limit)), state }),
  };
}
