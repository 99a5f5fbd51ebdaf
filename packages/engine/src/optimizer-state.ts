import {
  choose,
  dispose,
  keep,
  NotFoundError,
  StateError,
  tidy,
  type Gradient,
  type Parameter,
  type Scalar,
  type Tensor,
} from '@niwaki/tensor';
import type { State, Transform, UpdateContext } from '@niwaki/optim';
import { dense } from './gradient.ts';

/** The optimizer's state, one record a parameter, and the way an update reaches a parameter. It owns the tensors. */
export interface OptimizerStates {
  get(parameter: Parameter): State;
  /** The gradient in a kind that the optimizer takes. New tensors where it had to be written out. */
  accepted(gradient: Gradient, parameter: Parameter): Gradient;
  /** Host work, when due; what it replaces is disposed. */
  prepare(gradient: Gradient, context: UpdateContext): Promise<void>;
  /** update → commit, for one parameter. Where `ok` is 0 the parameter and its state stay as they are, bit for bit. */
  apply(gradient: Gradient, ok: Scalar, context: UpdateContext): void;
  /** Ends a step: numbers in the state, which no device can choose, take their new value if it was applied. */
  settle(applied: boolean): void;
  byPath(): ReadonlyMap<string, State>;
  restore(states: ReadonlyMap<string, State>): void;
  bytes(): number;
  dispose(): void;
}

export function createOptimizerStates(optimizer: Transform, parameters: readonly Parameter[]): OptimizerStates {
  const states = new Map<Parameter, State>();
  const numbers = new Map<Parameter, Record<string, number>>();
  for (const parameter of parameters)
    states.set(parameter, keepState(tidy(() => optimizer.init(parameter) as Record<string, Tensor | number>)));

  const replace = (parameter: Parameter, next: State): void => {
    const old = states.get(parameter)!;
    states.set(parameter, keepState(next));
    const alive = new Set(tensorsIn(next));
    for (const tensor of tensorsIn(old)) if (!alive.has(tensor)) tensor.dispose();
  };

  return {
    get: (parameter) => states.get(parameter)!,
    accepted: (gradient, parameter) =>
      gradient.kind === 'dense' || optimizer.accepts?.includes(gradient.kind)
        ? gradient
        : { kind: 'dense', value: dense(gradient, parameter) },
    prepare: async (gradient, context) => {
      const old = states.get(context.parameter)!;
      if (optimizer.prepare === undefined || !optimizer.due?.(old, context)) return;
      replace(context.parameter, await optimizer.prepare(gradient, old, context));
    },
    apply: (gradient, ok, context) => {
      const { parameter } = context;
      const old = states.get(parameter)!;
      const next = tidy(() => {
        const { update, state, how } = optimizer.update(gradient, old, context);
        parameter.commit(update, ok, how);
        const fresh: Record<string, number> = {};
        const chosen = Object.entries(state).map(([name, value]): [string, Tensor | number] => {
          if (typeof value !== 'number') return [name, chooseState(ok, value, old[name])];
          fresh[name] = value;
          return [name, old[name] ?? value];
        });
        numbers.set(parameter, fresh);
        return Object.fromEntries(chosen);
      });
      replace(parameter, next);
    },
    settle: (applied) => {
      if (applied)
        for (const [parameter, fresh] of numbers)
          if (Object.keys(fresh).length > 0) states.set(parameter, { ...states.get(parameter)!, ...fresh });
      numbers.clear();
    },
    byPath: () => new Map([...states].map(([parameter, state]) => [parameter.path, state])),
    restore: (given) => {
      const missing = parameters.filter(({ path }) => !given.has(path)).map(({ path }) => path);
      if (missing.length > 0 || given.size !== parameters.length) {
        const known = new Set(parameters.map(({ path }) => path));
        const extra = [...given.keys()].filter((path) => !known.has(path));
        throw new NotFoundError(
          `the optimizer state does not fit: ${missing.length} of ${parameters.length} parameters have none, ${extra.length} are unknown`,
          {
            missing,
            extra,
            help: 'Resume with the model, adapter and optimizer that the checkpoint was made with.',
          },
        );
      }
      for (const parameter of parameters) replace(parameter, given.get(parameter.path)!);
    },
    bytes: () => [...states.values()].flatMap(tensorsIn).reduce((sum, { size }) => sum + size * 4, 0),
    dispose: () => {
      for (const state of states.values()) dispose(tensorsIn(state));
      states.clear();
    },
  };
}

const tensorsIn = (state: State): Tensor[] => Object.values(state).filter((value): value is Tensor => typeof value !== 'number');

/** State lives from step to step, whatever scope it was made in. */
function keepState<S extends State>(state: S): S {
  tensorsIn(state).forEach(keep);
  return state;
}

function chooseState(ok: Scalar, next: Tensor, old: Tensor | number | undefined): Tensor {
  if (next === old) return next;
  if (old === undefined || typeof old === 'number' || old.shape.join() !== next.shape.join() || old.dtype !== next.dtype) {
    throw new StateError(`internal: an update changed the layout of its state from ${describe(old)} to ${describe(next)}`, {
      help: 'Only `init` and `prepare` lay state out: what a refused step must put back has to be there.',
    });
  }
  return choose(ok, next, old);
}

const describe = (value: Tensor | number | undefined): string =>
  typeof value === 'object' ? `${value.dtype} [${value.shape}]` : String(value);
