import { addDecayedWeights } from './decay.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import { scaleByAdam, type AdamOptions } from './scale-by-adam.ts';
import type { Transform } from './transform.ts';

export interface AdamwOptions extends AdamOptions {
  /** Used where no schedule is given. */
  readonly learningRate: number;
  /** Decoupled, default 0.01, on every parameter as in torch: norms and biases too, unless a group says otherwise. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
}

/**
 * Adam with decoupled weight decay (Loshchilov & Hutter 2019), number for number as torch.optim.AdamW: the value shrinks
 * by 1 - rate · weightDecay, then the direction times the rate is taken off. State: 8 bytes an entry.
 * @example adamw({ learningRate: 2e-4, groups: [{ roles: ['norm', 'bias'], weightDecay: 0 }] })
 */
export function adamw({ learningRate, weightDecay = 0.01, groups: list = [], ...adam }: AdamwOptions): Transform {
  checkRate('adamw', learningRate);
  const settings = groups(list, { weightDecay });
  const transform = chain(scaleByAdam(adam), addDecayedWeights(settings.weightDecay, settings), scaleByLearningRate(settings));
  return { ...transform, name: 'adamw', learningRate };
}
