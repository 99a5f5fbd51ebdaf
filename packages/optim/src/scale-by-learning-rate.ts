import { checkOptions, outOfRange } from '@niwaki/tensor';
import { valueFor, type PerParameter } from './groups.ts';
import type { Transform } from './transform.ts';

/**
 * Turns a direction into a step downhill: times -rate, the rate of the step's schedule, as it is committed. No state.
 * @param options `rateScale`: a factor of a group's own
 */
export function scaleByLearningRate(options: { rateScale?: PerParameter } = {}): Transform<Record<never, never>> {
  checkOptions('scaleByLearningRate', options, ['rateScale']);
  const { rateScale = 1 } = options;
  return {
    name: 'rate',
    options: { rateScale },
    init: () => ({}),
    update: (update, state, { rate, parameter }) => ({ update, state, how: { scale: -rate * valueFor(rateScale, parameter) } }),
  };
}

/** @throws ConfigError where an optimizer's learning rate is no finite number of at least 0 */
export function checkRate(name: string, learningRate: number): void {
  if (learningRate >= 0 && learningRate < Infinity) return;
  throw outOfRange(name, 'learningRate', learningRate, 'a finite number of at least 0');
}
