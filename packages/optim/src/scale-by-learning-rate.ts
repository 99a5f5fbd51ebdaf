import { mul, outOfRange } from '@niwaki/tensor';
import { dense, valueOf } from './dense-update.ts';
import { valueFor, type PerParameter } from './groups.ts';
import type { Transform } from './transform.ts';

/** Turns a direction into a step downhill: times -rate, the rate of the step's schedule. No state. @param options `rateScale`: a factor of a group's own */
export function scaleByLearningRate({ rateScale = 1 }: { rateScale?: PerParameter } = {}): Transform<Record<never, never>> {
  return {
    name: 'rate',
    options: { rateScale },
    init: () => ({}),
    update: (gradient, state, { rate, parameter }) => ({
      update: dense(mul(valueOf(gradient), -rate * valueFor(rateScale, parameter))),
      state,
    }),
  };
}

/** @throws ConfigError where an optimizer's learning rate is no finite number of at least 0 */
export function checkRate(name: string, learningRate: number): void {
  if (learningRate >= 0 && learningRate < Infinity) return;
  throw outOfRange(name, 'learningRate', learningRate, 'a finite number of at least 0');
}
