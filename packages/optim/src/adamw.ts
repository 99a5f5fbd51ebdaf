import { checkOptions } from '@niwaki/tensor';
import { addDecayedWeights, type DecayOrder } from './decay.ts';
import { stateStoredAs, type StateStorage } from './blockwise-state.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import { adamNames, scaleByAdam, type AdamOptions } from './scale-by-adam.ts';
import type { Transform } from './transform.ts';

export interface AdamwOptions extends AdamOptions {
  /** Used where no schedule is given. */
  readonly learningRate: number;
  /** Decoupled, default 0.01, on every parameter as in torch: norms and biases too, unless a group says otherwise. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** '8bit': 2.03 bytes of state an entry, in blocks of 256. Default '32bit': 8. */
  readonly state?: StateStorage;
  /** Default 'before'; 'after' with 8-bit state, as the published results have it. */
  readonly decayOrder?: DecayOrder;
}

/**
 * Adam with decoupled weight decay (Loshchilov & Hutter 2019), number for number as torch.optim.AdamW: the value shrinks
 * by 1 - rate · weightDecay, then the direction times the rate is taken off. State: 8 bytes an entry, or 2.03.
 * @example adamw({ learningRate: 2e-4, groups: [{ roles: ['norm', 'bias'], weightDecay: 0 }] })
 */
export function adamw(options: AdamwOptions): Transform {
  checkOptions('adamw', options, ['learningRate', 'weightDecay', 'groups', 'state', 'decayOrder', ...adamNames]);
  const { learningRate, weightDecay = 0.01, groups: list = [], state = '32bit', ...rest } = options;
  const { decayOrder = state === '32bit' ? 'before' : 'after', ...adam } = rest;
  checkRate('adamw', learningRate);
  const settings = groups(list, { weightDecay });
  const transform = chain(
    stateStoredAs(state, scaleByAdam(adam)),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale, order: decayOrder }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  return { ...transform, name: 'adamw', learningRate };
}
