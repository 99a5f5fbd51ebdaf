import {
  add,
  createDraw,
  NumericError,
  plainView,
  recordTape,
  scalar,
  tidy,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall, type Call } from '@niwaki/weights';
import type { Carry, Stage } from '@niwaki/nn';
import type { Transform } from '@niwaki/optim';
import type { GradientStore } from '../gradient.ts';
import { createOptimizerStates } from '../optimizer-state.ts';
import { createPass } from '../pass.ts';
import { routeOf } from '../route.ts';
import { runAtomic, type WindowOptions } from '../window.ts';
import type { CountedRows } from './collector.ts';
import { rowsOf, type CalibrationBatch } from './streams.ts';

export interface Fit {
  /** Parameters of the window's stages that are optimized; no other gradient is taken. */
  readonly train: readonly Parameter[];
  /** Its state is made for this fit and freed after it. */
  readonly optimizer: Transform;
  /** Passes over the batches, in their order, one step a batch. */
  readonly epochs: number;
  /** The learning rate by the part of the fit that is done, [0, 1); default the optimizer's own throughout. */
  readonly rate?: (progress: number) => number;
  /**
   * How far what leaves the window is from what left the float one, for one batch: a scalar, differentiable in `output`.
   * `rows` tells which rows of a stream count.
   */
  loss(output: Carry, target: Carry, rows: (stream: Tensor2D) => CountedRows): Scalar;
  /** Added to the loss in the step at `progress`; differentiated one by one, so that what one holds is gone before the next. */
  readonly penalties?: (progress: number) => readonly Penalty[];
}

/** A term of parameters alone. */
export interface Penalty {
  /** Those of `train` it reads. */
  readonly parameters: readonly Parameter[];
  value(call: Call): Scalar;
}

export interface FitProgress {
  /** Paths of the blocks that are fitted together. */
  readonly window: readonly string[];
  /** Steps finished. */
  readonly done: number;
  readonly total: number;
  /** Loss and penalties of the step. */
  readonly loss: number;
}

export interface FitContext {
  readonly kind: string;
  /** The window's. */
  readonly stages: readonly Stage[];
  readonly batches: readonly CalibrationBatch[];
  /** What enters the window and what left the float one, a carry a batch. */
  readonly inputs: readonly Carry[];
  readonly targets: readonly Carry[];
  readonly signal?: AbortSignal;
  readonly onFit?: (progress: FitProgress) => void;
}

/**
 * Optimizes parameters of a few stages over calibration batches. A batch holds what stages read from one another and the
 * tape of one stage: earlier stages are computed again on the way back. One read-back a step.
 * @throws NumericError that names the window, where a loss or a gradient is not finite; AbortError between steps
 */
export async function fitWindow(context: FitContext, fit: Fit): Promise<void> {
  const { kind, batches, signal, onFit } = context;
  const window = context.stages.map(({ path }) => path);
  const { train, optimizer, epochs, rate = () => optimizer.learningRate ?? 0 } = fit;
  const states = createOptimizerStates(optimizer, train);
  states.select(new Set(train), 0);
  // Two copies where a penalty's gradient comes to the loss's.
  const limit = 2 * train.reduce((bytes, { shape }) => bytes + shape.reduce((product, side) => product * side, 4), 0);
  const total = epochs * batches.length;
  try {
    for (let step = 0; step < total; step++) {
      const b = step % batches.length;
      const progress = step / total;
      const { loss, applied } = await runAtomic({
        batches: [batches[b]!.call.batch],
        weights: [1],
        attempt: step,
        updates: step,
        rate: rate(progress),
        progress,
        draw: createDraw(0, step),
        estimate: (turn, store) => estimate(context, fit, { b, progress, turn, store }),
        optimizer,
        states,
        limit,
        ...(signal && { signal }),
      });
      if (!applied) {
        throw new NumericError(`${kind}: step ${step} of the window ${window.join(', ')} has a loss of ${loss}`, {
          window,
          step,
          loss,
          help: 'Lower the learning rates, or look for values that are not finite in the calibration activations.',
        });
      }
      states.settle(true);
      onFit?.({ window, done: step + 1, total, loss });
    }
  } finally {
    states.dispose();
  }
}

interface OneStep {
  /** Index of the batch. */
  readonly b: number;
  readonly progress: number;
  readonly turn: Parameters<WindowOptions['estimate']>[0];
  readonly store: GradientStore;
}

/** Gradients of one batch into the store; the loss, the caller's. */
async function estimate(context: FitContext, fit: Fit, { b, progress, turn, store }: OneStep): Promise<Scalar> {
  const list = [entrance(context.inputs[b]!), ...context.stages, exit(context, fit, b)];
  const route = routeOf({ stages: () => list }, new Set(fit.train));
  const { head, first } = route;
  const pass = createPass({ ...turn, view: plainView }, route, { training: false });
  const sink = { push: store.add };
  let loss: Tensor | undefined;
  try {
    for (let s = 0; s <= head; s++) {
      // The last stage's backward comes next: its tape stays.
      tidy(() => pass.forward(s, { record: s === head - 1 && s >= first }));
      await turn.between?.();
    }
    loss = pass.given(head)!['loss']!.clone();
    tidy(() => pass.addCotangent('loss', scalar(turn.scale)));
    for (let s = head; s >= first; s--) {
      tidy(() => pass.backward(s, sink));
      await turn.between?.();
    }
    for (const penalty of fit.penalties?.(progress) ?? []) {
      const before: Tensor = loss;
      loss = tidy(() => add(before, addPenalty(penalty, turn, store)));
      before.dispose();
    }
    return loss as Scalar;
  } catch (error) {
    loss?.dispose();
    throw error;
  } finally {
    pass.dispose();
  }
}

function addPenalty({ parameters, value }: Penalty, { batch, at, draw, scale }: OneStep['turn'], store: GradientStore): Scalar {
  const watched = new Map(parameters.map((parameter) => [parameter, parameter.read()]));
  const tape = recordTape(() => value(createCall({ batch, at, draw, watched })));
  const gradients = tape.pull([...watched.values()], [{ of: tape.value, value: scalar(scale) }]);
  for (const [i, parameter] of parameters.entries()) {
    if (gradients[i] !== undefined) store.add(parameter, { kind: 'dense', value: gradients[i] });
  }
  return tape.value;
}

/** The streams that enter the window, as if a stage had written them. */
const entrance = (carry: Carry): Stage => ({
  path: 'inputs',
  reads: [],
  writes: Object.keys(carry),
  sites: [],
  parameters: () => [],
  run: () => Object.fromEntries(Object.entries(carry).map(([name, tensor]) => [name, tensor.clone()])),
});

/** The loss as a last stage: it reads every stream that leaves. */
function exit({ batches, targets }: FitContext, { loss }: Fit, b: number): Stage {
  const target = targets[b]!;
  return {
    path: 'loss',
    reads: Object.keys(target),
    writes: ['loss'],
    sites: [],
    parameters: () => [],
    run: (output) => ({ loss: loss(output, target, (stream) => rowsOf(batches[b]!, stream)) }),
  };
}
