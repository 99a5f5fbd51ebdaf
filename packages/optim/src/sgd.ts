import { checkOptions, ConfigError } from '@niwaki/tensor';
import { addL2 } from './decay.ts';
import { stateStoredAs, type StateStorage } from './blockwise-state.ts';
import { chain } from './chain.ts';
import { groups, type Group } from './groups.ts';
import { checkRate, scaleByLearningRate } from './scale-by-learning-rate.ts';
import { scaleByMomentum } from './scale-by-momentum.ts';
import type { Transform } from './transform.ts';

export interface SgdOptions {
  /** Used where no schedule is given. */
  readonly learningRate: number;
  /** Default 0: none, and no state. */
  readonly momentum?: number;
  readonly nesterov?: boolean;
  /** Added to the gradient as weightDecay · value, as in torch; default 0. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** '8bit': 1.016 bytes of state an entry; needs momentum. Default '32bit': 4. */
  readonly state?: StateStorage;
}

/** Stochastic gradient descent, number for number as torch.optim.SGD. State: none, or 4 bytes an entry with momentum. */
export function sgd(options: SgdOptions): Transform {
  checkOptions('sgd', options, ['learningRate', 'momentum', 'nesterov', 'weightDecay', 'groups', 'state']);
  const { learningRate, momentum = 0, nesterov = false, weightDecay = 0, groups: list = [], state = '32bit' } = options;
  if (momentum === 0 && state !== '32bit') {
    throw new ConfigError('sgd without momentum has no state to store in 8 bits', { momentum, help: 'Give a momentum, or drop `state`.' });
  }
  checkRate('sgd', learningRate);
  const settings = groups(list, { weightDecay });
  const heavyBall = momentum === 0 ? [] : [stateStoredAs(state, scaleByMomentum({ momentum, nesterov }))];
  const transform = chain(addL2(settings.weightDecay), ...heavyBall, scaleByLearningRate({ rateScale: settings.rateScale }));
  return { ...transform, name: 'sgd', learningRate };
}
