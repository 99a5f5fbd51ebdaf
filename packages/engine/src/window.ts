import {
  add,
  allFinite,
  dispose,
  keep,
  mul,
  scalar,
  stack,
  StateError,
  throwIfAborted,
  tidy,
  type Draw,
  type Gradient,
  type Parameter,
  type Scalar,
  type Tensor,
} from '@niwaki/tensor';
import { countedFrom, type Transform, type UpdateContext } from '@niwaki/optim';
import { createBreath } from './breath.ts';
import type { Turn } from './estimator.ts';
import { createGradientStore, squaredNorm, tensorsOf, total, type GradientStore } from './gradient.ts';
import type { OptimizerStates } from './optimizer-state.ts';
import type { StepInput } from './step.ts';

/** One step's accumulation window on its way from batches to committed parameters. */
export interface WindowOptions extends StepInput {
  /** One micro-batch's gradients, pushed into the sink; returns its part of the loss. */
  readonly estimate: (turn: Pick<Turn, 'batch' | 'at' | 'draw' | 'scale' | 'between' | 'onLoss'>, store: GradientStore) => Promise<Scalar>;
  readonly optimizer: Transform;
  readonly states: OptimizerStates;
  /** Target tokens of each batch; those of weight 0 are not run. */
  readonly weights: readonly number[];
  /** Applied updates before this step. */
  readonly updates: number;
  /** Gradient bytes that the plan allows. */
  readonly limit: number;
}

export interface WindowResult {
  readonly loss: number;
  readonly squaredNorm: number;
  /** The loss was finite, and in an atomic step the gradient too: the update counts. */
  readonly counted: boolean;
  /** No parameter was kept back. */
  readonly applied: boolean;
}

/** All gradients first, then everything or nothing. */
export async function runAtomic(options: WindowOptions): Promise<WindowResult> {
  const { optimizer, states, signal } = options;
  const store = createGradientStore(options);
  const breathe = createBreath();
  const between = async (): Promise<void> => {
    throwIfAborted(signal, 'the step');
    await breathe();
  };
  const live: Tensor[] = [];
  try {
    const loss = await estimateAll(options, store, { between });
    live.push(loss);
    throwIfAborted(signal, 'the step');
    const norm = keep(squaredNorm(store.entries()));
    const ok = keep(tidy(() => allFinite(stack([loss, norm]))));
    const measured = measureAll(store, options);
    const applied = scalar(options.updates + 1);
    live.push(norm, ok, applied, ...(measured === undefined ? [] : [measured]));
    const contextOf = contexts(options, { updates: applied, total: measured, live });

    // Host work needs finite numbers, so where some is due the gate is read here already.
    let refused: boolean | undefined;
    for (const [parameter, gradient] of store.entries()) {
      const context = contextOf(parameter);
      if (refused || !optimizer.due?.(states.get(parameter), context)) continue;
      refused ??= (await ok.data())[0] !== 1;
      if (!refused) await prepare(states, gradient, context);
    }
    for (const [parameter] of refused ? [] : store.entries()) {
      states.apply(store.take(parameter)!, ok, contextOf(parameter));
      await breathe();
    }
    const [lossValue, squared, gate] = await readOnce([loss, norm, ok]);
    return { loss: lossValue!, squaredNorm: squared!, counted: gate === 1, applied: gate === 1 };
  } finally {
    store.dispose();
    dispose(live);
  }
}

/** Each gradient is applied as soon as it is final; the loss alone gates the step. */
export async function runEager(options: WindowOptions): Promise<WindowResult> {
  const { optimizer, states, signal } = options;
  const store = createGradientStore(options);
  const breathe = createBreath();
  const applied = scalar(options.updates + 1);
  const live: Tensor[] = [applied];
  const contextOf = contexts(options, { updates: applied, total: undefined, live });
  let lossOk: Scalar | undefined;
  let allOk: Scalar | undefined;
  let committed = false;

  const gate = (loss: Scalar): void => {
    if (lossOk !== undefined) return;
    lossOk = allOk = keep(tidy(() => allFinite(loss)));
    live.push(lossOk);
  };
  const flush = async (): Promise<void> => {
    if (store.bytes > 0 && lossOk === undefined) throw new StateError('internal: a gradient came before the loss that gates it');
    for (const [parameter, gradient] of store.entries()) {
      const context = contextOf(parameter);
      const ok = keep(tidy(() => tensorsOf(gradient).reduce<Scalar>((all, tensor) => mul(all, allFinite(tensor)), lossOk!)));
      live.push(ok);
      if (optimizer.due?.(states.get(parameter), context) && (await ok.data())[0] === 1) await prepare(states, gradient, context);
      committed = true;
      states.apply(store.take(parameter)!, ok, context);
      const both = keep(mul(allOk!, ok)) as Scalar;
      live.push(both);
      allOk = both;
    }
  };
  try {
    const loss = await estimateAll(options, store, {
      between: async () => {
        if (!committed) throwIfAborted(signal, 'the step');
        await flush();
        await breathe();
      },
      onLoss: gate,
    });
    live.push(loss);
    gate(loss);
    await flush();
    const [lossValue, counted, all] = await readOnce([loss, lossOk!, allOk!]);
    return { loss: lossValue!, squaredNorm: NaN, counted: counted === 1, applied: all === 1 };
  } finally {
    store.dispose();
    dispose(live);
  }
}

/** Runs every micro-batch; the sum of their losses, the caller's. */
async function estimateAll(options: WindowOptions, store: GradientStore, hooks: Pick<Turn, 'between' | 'onLoss'>): Promise<Scalar> {
  const { batches, weights, attempt, draw, estimate } = options;
  const scale = 1 / weights.reduce((sum, weight) => sum + weight, 0);
  let loss: Tensor | undefined;
  try {
    for (const [micro, batch] of batches.entries()) {
      if (weights[micro] === 0) continue;
      const at = { attempt, phaseStep: attempt, micro, pass: 0 };
      const part = await estimate({ batch, at, draw: microDraw(draw, micro), scale, ...hooks }, store);
      const before: Tensor | undefined = loss;
      loss = before === undefined ? part : keep(add(before, part));
      if (before !== undefined) dispose([before, part]);
    }
  } catch (error) {
    loss?.dispose();
    throw error;
  }
  return keep(loss as Scalar);
}

/** Micro-batches draw under their own sample number, so that no address is used twice in a step. */
const microDraw = (draw: Draw, micro: number): Draw => ({ at: (name, sample = micro) => draw.at(name, sample) });

interface Shared {
  readonly updates: Scalar;
  readonly total: Scalar | undefined;
  /** Disposed when the step ends. */
  readonly live: Tensor[];
}

/** What an update is told, one parameter at a time; `once` shares tensors among them. */
function contexts(
  { attempt, rate, progress, draw, states, updates: before }: WindowOptions,
  { updates, total, live }: Shared,
): (parameter: Parameter) => UpdateContext {
  const made = new Map<string, Tensor>();
  const once = <T extends Tensor>(name: string, make: () => T): T => {
    const known = made.get(name);
    if (known !== undefined) return known as T;
    const fresh = keep(make());
    made.set(name, fresh);
    live.push(fresh);
    return fresh;
  };
  return (parameter) => {
    const context = { parameter, attempt, updates, rate, progress, draw, once, ...(total === undefined ? {} : { total }) };
    const since = states.since(parameter);
    return since === 0 ? context : countedFrom(context, before + 1 - since);
  };
}

function measureAll(store: GradientStore, { optimizer, states }: WindowOptions): Scalar | undefined {
  if (optimizer.measure === undefined) return undefined;
  return keep(
    tidy(() =>
      total(
        store
          .entries()
          .map(([parameter, gradient]) => tidy(() => optimizer.measure!(states.accepted(gradient, parameter), states.get(parameter)))),
      ),
    ),
  ) as Scalar;
}

async function prepare(states: OptimizerStates, gradient: Gradient, context: UpdateContext): Promise<void> {
  let accepted = gradient;
  tidy(() => {
    accepted = states.accepted(gradient, context.parameter);
    tensorsOf(accepted).forEach(keep);
  });
  try {
    await states.prepare(accepted, context);
  } finally {
    if (accepted !== gradient) dispose(tensorsOf(accepted));
  }
}

/** The step's single read-back. */
async function readOnce(scalars: readonly Tensor[]): Promise<readonly number[]> {
  const together = tidy(() => stack([...scalars]));
  try {
    return Array.from(await together.data());
  } finally {
    together.dispose();
  }
}
