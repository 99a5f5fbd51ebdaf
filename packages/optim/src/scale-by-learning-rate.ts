import { ConfigError, mul } from '@niwaki/tensor';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

/** Turns a direction into a step downhill: times -rate, the rate of the step's schedule. No state. @param options `rateScale`: a factor of a group's own */
export function scaleByLearningRate({ rateScale = 1 }: { rateScale?: number } = {}): Transform<Record<never, never>> {
  if (!(rateScale >= 0)) throw new ConfigError(`rateScale must not be negative, got ${rateScale}`, { rateScale });
  return {
    name: 'rate',
    init: () => ({}),
    update: (gradient, state, { rate }) => ({ update: dense(mul(valueOf(gradient), -rate * rateScale)), state }),
  };
}

export function checkRate(name: string, learningRate: number): void {
  if (learningRate >= 0 && learningRate < Infinity) return;
  throw new ConfigError(`${name}: learningRate must be a finite number, at least 0, got ${learningRate}`, { learningRate });
}
