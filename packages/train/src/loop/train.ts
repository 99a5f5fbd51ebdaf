import { AbortError, ConfigError, createDraw, NumericError, refuse, throwIfAborted, type Json } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { chain, clipByGlobalNorm, transformParty, type Schedule, type Transform } from '@niwaki/optim';
import {
  blockwiseBackprop,
  causalLM,
  check,
  createStep,
  disposeBatch,
  holdModel,
  type CommitMode,
  type Estimator,
  type Objective,
  type Participant,
  type Recompute,
  type StepResult,
} from '@niwaki/engine';
import type { AdapterMethod } from '@niwaki/peft';
import type { RunState } from '../checkpoint/checkpoint.ts';
import type { TrainData } from '../data/train-data.ts';
import type { TrainEvent } from './events.ts';
import { identityOf } from './identity.ts';
import { createKeeper, type CheckpointOptions } from './keeper.ts';
import { openMemoryMeter } from './memory.ts';
import { checkTraining, settingsOf } from './options.ts';

export interface TrainOptions {
  readonly data: TrainData;
  /** Default: cross-entropy of the next token. */
  readonly objective?: Objective;
  readonly optimizer: Transform;
  /** Learning rate of each step; default: the optimizer's own, constant. */
  readonly schedule?: Schedule;
  /** Optimizer steps. Give this or `epochs` (default: one epoch). */
  readonly steps?: number;
  readonly epochs?: number;
  /** Rows of a micro-batch; default 1. */
  readonly batchSize?: number;
  /** Micro-batches of a step; default 1. Their token losses are summed and divided by the tokens of all of them. */
  readonly accumulate?: number;
  /** Bound of the gradient's global L2 norm; 0 or absent: none. */
  readonly clip?: number;
  /** Of the data order, dropout and everything else that is drawn; default 0. */
  readonly seed?: number | bigint;
  readonly evaluate?: {
    /** Steps between evaluations; the last step is always followed by one. */
    readonly every: number;
    readonly run: (signal: AbortSignal | undefined) => Promise<Readonly<Record<string, number>>>;
  };
  readonly checkpoint?: CheckpointOptions;
  /** After it fires the run writes a checkpoint (where one is asked for) and throws AbortError. */
  readonly signal?: AbortSignal;
  readonly commit?: CommitMode;
  readonly estimator?: Estimator;
  /**
   * Bytes of all tensors that may be on the device in a step. What is over is spent on keeping what the backward pass
   * would compute again: up to a fourth of the time, and the same result bit for bit. Default: nothing is kept.
   */
  readonly memoryBudget?: number;
  /** What the backward pass of each block computes again: what `memoryBudget` would choose, and given in its place. Default 'full'. */
  readonly recompute?: Recompute;
  /** What else takes part in each step, e.g. lisa(); adapters that need one bring their own. */
  readonly participants?: readonly Participant[];
  /** Refused steps (the loss was not finite) in a row that end the run; default 5. */
  readonly maxRefused?: number;
  /** Kept in the checkpoint for whoever finds it. */
  readonly recipe?: Json;
}

/**
 * Trains a model's trainable parameters, step by step, as fast as the events are taken.
 *
 * A step is: a window of micro-batches → gradients → one atomic update. Everything it draws (data order, dropout,
 * rounding) is addressed by the seed and the number of the step, so a run that stops and resumes at any step gives the
 * same bits as one that never stopped. Leaving the loop early (`break`) frees the optimizer's state; so does its end.
 * One run at a time: it takes hold of the model, and lets go at its end, on an error, an abort, or a `break`.
 * Memory: gradients of the trained parameters, the optimizer's state, and one stage's activations beside the carries.
 * @throws NumericError after `maxRefused` refused steps in a row; CheckpointError, which names what differs where a checkpoint
 *   is of another run; BusyModelError, ConfigError before the first step; AbortError
 */
export async function* train(model: Model, options: TrainOptions): AsyncGenerator<TrainEvent, void, undefined> {
  checkTraining(model, options);
  const letGo = holdModel(model, 'a training run');
  try {
    yield* run(model, options);
  } finally {
    letGo();
  }
}

async function* run(model: Model, options: TrainOptions): AsyncGenerator<TrainEvent, void, undefined> {
  const { batchSize, accumulate, clip, seed, maxRefused, ...length } = settingsOf(options);
  const { data, objective = causalLM(), signal, evaluate, commit } = options;
  const participants = [...(options.participants ?? []), ...participantsOf(model)];
  const estimator = estimatorOf(options);
  const plan = data.plan({ batchSize, accumulate, seed });
  const steps = length.steps ?? length.epochs * plan.stepsPerEpoch;
  const optimizer = clip > 0 ? chain(clipByGlobalNorm(clip), options.optimizer) : options.optimizer;
  refuse(check({ training: { optimizer: transformParty(optimizer), accumulate, ...(commit && { commit }) } }), { accumulate, clip });
  const rate = rateOf(options, steps);
  const step = createStep({ model, objective, optimizer, participants, estimator, ...(commit && { commit }) });
  const meter = openMemoryMeter(model, step);
  try {
    const keeper = options.checkpoint && createKeeper(options.checkpoint, model, step);
    const { schedule } = options;
    const named = { steps, batchSize, accumulate, data: data.hash, seed };
    const identity = identityOf({ model, optimizer, schedule, participants, objective, estimator, ...named });
    const sameSoFar = ({ attempt: done, run: { steps: before } }: RunState): boolean => {
      const earlier = rateOf(options, before);
      const sameRates = Array.from({ length: done }, (_, i) => i).every((i) => rate(i) === earlier(i));
      return done <= steps && sameRates && !participants.some(({ byLength }) => byLength);
    };
    const resumed = await keeper?.restore(identity, sameSoFar);
    if (resumed !== undefined) yield { kind: 'resume', step: resumed.attempt };
    let { attempt, tokens } = resumed ?? { attempt: 0, tokens: 0 };
    const refused = { ...(resumed?.refused ?? { total: 0, running: 0 }) };
    let savedAt = resumed?.attempt;
    const save = async (): Promise<TrainEvent | undefined> => {
      if (keeper === undefined || savedAt === attempt) return undefined;
      const cursor = { epoch: Math.floor(attempt / plan.stepsPerEpoch), step: attempt % plan.stepsPerEpoch };
      const recipe = options.recipe === undefined ? {} : { recipe: options.recipe };
      const name = await keeper.save({ attempt, updates: step.updates(), refused, cursor, tokens, run: identity, ...recipe });
      savedAt = attempt;
      return { kind: 'checkpoint', step: attempt, name };
    };
    const pace = createPace(steps - attempt);

    try {
      while (attempt < steps) {
        throwIfAborted(signal, 'training');
        const epoch = Math.floor(attempt / plan.stepsPerEpoch);
        const learningRate = rate(attempt);
        const started = performance.now();
        meter.begin();
        const window = await plan.window(epoch, attempt % plan.stepsPerEpoch);
        let result: StepResult;
        try {
          result = await step.run({
            batches: window.batches,
            attempt,
            rate: learningRate,
            progress: attempt / steps,
            steps,
            draw: createDraw(seed, attempt),
            // Eager updates cannot be taken back: such a step runs to its end.
            ...(signal && commit !== 'eager' && { signal }),
          });
        } finally {
          for (const batch of window.batches) disposeBatch(batch);
        }
        attempt += 1;
        tokens += window.tokens;
        refused.running = result.applied ? 0 : refused.running + 1;
        if (!result.applied) refused.total += 1;
        const seconds = (performance.now() - started) / 1000;
        yield {
          kind: 'step',
          step: attempt,
          steps,
          epoch,
          loss: result.loss,
          gradNorm: result.gradNorm,
          learningRate,
          tokensPerSecond: window.tokens / seconds,
          tokens,
          targets: result.tokens,
          memory: meter.report(),
          etaSeconds: pace.remaining(),
          applied: result.applied,
        };
        if (refused.running >= maxRefused) throw refusedTooOften(refused.running, attempt, result.loss, learningRate);
        if (evaluate !== undefined && (attempt % evaluate.every === 0 || attempt === steps)) {
          yield { kind: 'evaluation', step: attempt, metrics: await evaluate.run(signal) };
        }
        if (keeper !== undefined && (attempt % keeper.every === 0 || attempt === steps)) {
          const saved = await save();
          if (saved !== undefined) yield saved;
        }
      }
    } catch (error) {
      // Nothing of an interrupted step was applied, and `attempt` counts finished ones: the state is whole.
      const saved = error instanceof AbortError ? await save() : undefined;
      if (saved !== undefined) yield saved;
      throw error;
    }
  } finally {
    meter.dispose();
    step.dispose();
  }
}

/** What the adapters that train bring along. */
const participantsOf = (model: Model): readonly Participant[] =>
  [...model.adapters.values()]
    .filter(({ sites }) => [...sites.values()].some(({ parameters }) => Object.values(parameters).some(({ trainable }) => trainable)))
    .flatMap((set) => (set.method as Partial<AdapterMethod>).participant?.(set) ?? []);

/** Time left by the mean pace so far. */
function createPace(steps: number): { remaining(): number } {
  const started = performance.now();
  let done = 0;
  return {
    remaining: () => {
      done += 1;
      return ((performance.now() - started) / 1000 / done) * (steps - done);
    },
  };
}

function refusedTooOften(count: number, attempt: number, loss: number, learningRate: number): NumericError {
  return new NumericError(`the loss was ${loss} in ${count} steps in a row, up to step ${attempt}; none of them changed the model`, {
    step: attempt,
    loss,
    learningRate,
    help: 'Lower learningRate, set clip: 1 and a warm-up, and look for broken documents; the last checkpoint is sound.',
  });
}

function estimatorOf({ estimator, memoryBudget, recompute }: TrainOptions): Estimator {
  const saves = { ...(memoryBudget !== undefined && { memoryBudget }), ...(recompute !== undefined && { recompute }) };
  if (estimator === undefined) return blockwiseBackprop(saves);
  const [name] = Object.keys(saves);
  if (name === undefined) return estimator;
  throw new ConfigError(`train: ${name} is for blockwise backprop, and the estimator '${estimator.name}' was given`, {
    ...saves,
    estimator: estimator.name,
    help: 'Give one of the two: an estimator has options of its own.',
  });
}

function rateOf({ schedule, optimizer }: TrainOptions, steps: number): (step: number) => number {
  if (schedule !== undefined) return (step) => schedule.rate(step, steps);
  const { learningRate } = optimizer;
  if (learningRate !== undefined) return () => learningRate;
  throw new ConfigError(`train: the optimizer '${optimizer.name}' has no learning rate of its own`, {
    optimizer: optimizer.name,
    help: 'Give a schedule, for example constant({ learningRate: 2e-4 }).',
  });
}
