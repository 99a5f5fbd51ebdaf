import { checkOptions } from '@niwaki/tensor';
import { addDecayedWeights } from './decay.ts';
import { stateStoredAs, type StateStorage } from './blockwise-state.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import { sm3Names, scaleBySm3, type Sm3DirectionOptions } from './scale-by-sm3.ts';
import type { Transform } from './transform.ts';

export interface Sm3Options extends Sm3DirectionOptions {
  /** Used where no schedule is given. An entry's first step is this long. */
  readonly learningRate: number;
  /** Decoupled, default 0, of the updated value. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** '8bit' stores what there is of single entries in bytes; sums of rows and columns stay f32. Default '32bit'. */
  readonly state?: StateStorage;
}

/**
 * SM3 (Anil et al. 2019, 1901.11150): as AdaGrad, with one number a row and a column instead of one an entry. Sums only
 * grow, so the rate needs no decay of its own. What SpIEL-MA trains with.
 * @example sm3({ learningRate: 1e-3 })
 */
export function sm3(options: Sm3Options): Transform {
  checkOptions('sm3', options, ['learningRate', 'weightDecay', 'groups', 'state', ...sm3Names]);
  const { learningRate, weightDecay = 0, groups: list = [], state = '32bit', ...direction } = options;
  checkRate('sm3', learningRate);
  const settings = groups(list, { weightDecay });
  const transform = chain(
    stateStoredAs(state, scaleBySm3(direction)),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale, order: 'after' }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  return { ...transform, name: 'sm3', learningRate };
}
