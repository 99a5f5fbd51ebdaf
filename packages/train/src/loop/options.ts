import { aSchedule, aTransform } from '@niwaki/optim';
import { aModel, type Model } from '@niwaki/nn';
import { anEstimator, anObjective, aParticipant } from '@niwaki/engine';
import { checkCall, checkOptions, ConfigError, listOf, nounWith, optional } from '@niwaki/tensor';
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

const someData = nounWith('training data, as languageData() gives it', 'plan', 'hash');

/** What plain JavaScript lets through. @throws ConfigError */
export function checkTraining(model: Model, options: TrainOptions): void {
  const call = 'train(model, { data, optimizer: adamw({ learningRate: 2e-4 }) })';
  checkCall(call, { model: [model, aModel] });
  checkOptions('train', options, [
    'data',
    'objective',
    'optimizer',
    'schedule',
    'steps',
    'epochs',
    'batchSize',
    'accumulate',
    'clip',
    'seed',
    'evaluate',
    'checkpoint',
    'signal',
    'commit',
    'estimator',
    'memoryBudget',
    'recompute',
    'participants',
    'maxRefused',
    'recipe',
  ]);
  const { data, objective, optimizer, schedule, estimator, participants, evaluate, checkpoint } = options;
  checkCall(call, {
    data: [data, someData],
    optimizer: [optimizer, aTransform],
    objective: [objective, optional(anObjective)],
    schedule: [schedule, optional(aSchedule)],
    estimator: [estimator, optional(anEstimator)],
    participants: [participants, optional(listOf(aParticipant))],
  });
  if (evaluate !== undefined) checkOptions('train: evaluate', evaluate, ['every', 'run']);
  if (checkpoint !== undefined) checkOptions('train: checkpoint', checkpoint, ['folder', 'every', 'keep', 'resume']);
}

export function settingsOf(options: TrainOptions): Settings {
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
