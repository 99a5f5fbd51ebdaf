import { checkOptions } from '@niwaki/tensor';
import { addDecayedWeights } from './decay.ts';
import { stateStoredAs, type StateStorage } from './blockwise-state.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { agedAdamNames, scaleByAgedAdam, type AgedAdamOptions } from './scale-by-aged-adam.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import type { Transform } from './transform.ts';

export interface AgedAdamwOptions extends AgedAdamOptions {
  /** Used where no schedule is given. */
  readonly learningRate: number;
  /** Decoupled, default 0, of the updated value. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** '8bit': 6.03 bytes of state an entry; ages stay exact. Default '32bit': 12. */
  readonly state?: StateStorage;
}

/**
 * AdamW for entries that come and go: bias correction by each entry's own age, and moments that begin where an entry's
 * gradients so far are. What SpIEL-AG trains with.
 * @example agedAdamw({ learningRate: 1e-5, weightDecay: 30 })
 */
export function agedAdamw(options: AgedAdamwOptions): Transform {
  checkOptions('agedAdamw', options, ['learningRate', 'weightDecay', 'groups', 'state', ...agedAdamNames]);
  const { learningRate, weightDecay = 0, groups: list = [], state = '32bit', ...adam } = options;
  checkRate('agedAdamw', learningRate);
  const settings = groups(list, { weightDecay });
  const transform = chain(
    stateStoredAs(state, scaleByAgedAdam(adam)),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale, order: 'after' }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  // As checkpoints have it.
  return { ...transform, name: 'agedAdamw', learningRate };
}
