import { checkOptions } from '@niwaki/tensor';
import { addDecayedWeights } from './decay.ts';
import { stateStoredAs, type StateStorage } from './blockwise-state.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import { lionNames, scaleByLion, type LionDirectionOptions } from './scale-by-lion.ts';
import type { Transform } from './transform.ts';

export interface LionOptions extends LionDirectionOptions {
  /** Used where no schedule is given. 3 to 10 times below AdamW's: every entry moves by the whole rate. */
  readonly learningRate: number;
  /** Decoupled, default 0; 3 to 10 times AdamW's, so that rate · weightDecay stays. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** '8bit': 1.016 bytes of state an entry. Default '32bit': 4. */
  readonly state?: StateStorage;
}

/**
 * Lion (Chen et al. 2023, 2302.06675): half of Adam's state, and steps of one size. The rate must go to 0 at the end:
 * near an optimum every entry swings by it. Avoid with fewer than some 64 rows a step, since the sign amplifies noise.
 * @example lion({ learningRate: 3e-5, weightDecay: 0.1, state: '8bit' })
 */
export function lion(options: LionOptions): Transform {
  checkOptions('lion', options, ['learningRate', 'weightDecay', 'groups', 'state', ...lionNames]);
  const { learningRate, weightDecay = 0, groups: list = [], state = '32bit', ...direction } = options;
  checkRate('lion', learningRate);
  const settings = groups(list, { weightDecay });
  const transform = chain(
    stateStoredAs(state, scaleByLion(direction)),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  return { ...transform, name: 'lion', learningRate };
}
