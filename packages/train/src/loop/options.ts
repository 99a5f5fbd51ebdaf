import { ConfigError } from '@niwaki/tensor';
import type { TrainOptions } from './train.ts';

/** The numbers of a run, checked once. */
export interface Settings {
  readonly batchSize: number;
  readonly accumulate: number;
  readonly clip: number;
  readonly seed: number | bigint;
  readonly maxRefused: number;
  readonly steps: number | undefined;
  readonly epochs: number;
}

export function checkOptions(options: TrainOptions): Settings {
  const { batchSize = 1, accumulate = 1, clip = 0, seed = 0, maxRefused = 5, steps, epochs } = options;
  whole('batchSize', batchSize);
  whole('accumulate', accumulate);
  whole('maxRefused', maxRefused);
  if (steps !== undefined) whole('steps', steps);
  if (epochs !== undefined) whole('epochs', epochs);
  if (steps !== undefined && epochs !== undefined)
    throw new ConfigError(`train: give steps (${steps}) or epochs (${epochs}), not both`, { steps, epochs });
  if (!(clip >= 0 && Number.isFinite(clip)))
    throw new ConfigError(`train: clip must be 0 (off) or a positive number, got ${clip}`, { clip });
  if (typeof seed === 'number' && !Number.isSafeInteger(seed))
    throw new ConfigError(`train: seed must be a whole number, got ${seed}`, { seed });
  if (options.memoryBudget !== undefined) whole('memoryBudget', options.memoryBudget);
  if (options.evaluate !== undefined) whole('evaluate.every', options.evaluate.every);
  if (options.checkpoint?.every !== undefined) whole('checkpoint.every', options.checkpoint.every);
  if (options.checkpoint?.keep !== undefined) whole('checkpoint.keep', options.checkpoint.keep);
  return { batchSize, accumulate, clip, seed, maxRefused, steps, epochs: epochs ?? 1 };
}

function whole(name: string, value: number): void {
  if (Number.isInteger(value) && value >= 1) return;
  throw new ConfigError(`train: ${name} must be a whole number of at least 1, got ${value}`, { [name]: value });
}
