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
  /** Between steps: another state of the same form. What only the old one holds is disposed. */
  replace(parameter: Parameter, state: State): void;
  /**
   * Those that train from now on: the state of the others is freed, that of new ones made.
   * @param updates applied updates so far, from which a new state counts its own
   */
  select(chosen: ReadonlySet<Parameter>, updates: number): void;
  /** Updates of the run before this parameter's state was made. */
  since(parameter: Parameter): number;
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

/** Beside a state that began after the run did: where it counts from. */
const sinceKey = '#since';

/** No state is made before the first `select`. */
export function createOptimizerStates(optimizer: Transform, parameters: readonly Parameter[]): OptimizerStates {
  const states = new Map<Parameter, State>();
  const numbers = new Map<Parameter, Record<string, number>>();
  const began = new Map<Parameter, number>();

  const replace = (parameter: Parameter, next: State): void => {
    const old = states.get(parameter)!;
    states.set(parameter, keepState(next));
    const alive = new Set(tensorsIn(next));
    for (const tensor of tensorsIn(old)) if (!alive.has(tensor)) tensor.dispose();
  };

  return {
    get: (parameter) => states.get(parameter)!,
    replace,
    select: (chosen, updates) => {
      for (const [parameter, state] of states) {
        if (chosen.has(parameter)) continue;
        dispose(tensorsIn(state));
        states.delete(parameter);
        began.delete(parameter);
      }
      for (const parameter of parameters) {
        if (!chosen.has(parameter) || states.has(parameter)) continue;
        states.set(parameter, keepState(tidy(() => optimizer.init(parameter, parameters) as Record<string, Tensor | number>)));
        began.set(parameter, updates);
      }
    },
    since: (parameter) => began.get(parameter) ?? 0,
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
        const { update, state, how, gated = false } = optimizer.update(gradient, old, { ...context, ok });
        parameter.commit(update, ok, { noise: context.draw.at(`${parameter.path}#rounding`), ...how });
        const fresh: Record<string, number> = {};
        const chosen = Object.entries(state).map(([name, value]): [string, Tensor | number] => {
          if (typeof value !== 'number') return [name, gated ? value : chooseState(ok, value, old[name])];
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
    byPath: () =>
      new Map(
        [...states].map(([parameter, state]) => {
          const since = began.get(parameter) ?? 0;
          return [parameter.path, since === 0 ? state : { ...state, [sinceKey]: since }];
        }),
      ),
    restore: (given) => {
      const held = [...states.keys()];
      // A state without entries leaves nothing in a file.
      const missing = held.filter((parameter) => !given.has(parameter.path) && Object.keys(states.get(parameter)!).length > 0);
      const known = new Map(parameters.map((parameter) => [parameter.path, parameter]));
      const extra = [...given.keys()].filter((path) => !known.has(path));
      if (missing.length > 0 || extra.length > 0) {
        throw new NotFoundError(
          `the optimizer state does not fit: ${missing.length} of ${held.length} parameters have none, ${extra.length} are unknown`,
          {
            missing: missing.map(({ path }) => path),
            extra,
            help: 'Resume with the model, adapter and optimizer that the checkpoint was made with.',
          },
        );
      }
      for (const parameter of optimizer.varies ? [] : held) checkNames(parameter, given.get(parameter.path) ?? {}, states.get(parameter)!);
      for (const [path, { [sinceKey]: since = 0, ...state }] of given) {
        const parameter = known.get(path)!;
        if (states.has(parameter)) replace(parameter, state);
        else states.set(parameter, keepState(state));
        began.set(parameter, since as number);
      }
    },
    bytes: () => [...states.values()].flatMap(tensorsIn).reduce((sum, { size }) => sum + size * 4, 0),
    dispose: () => {
      for (const state of states.values()) dispose(tensorsIn(state));
      states.clear();
    },
  };
}

function checkNames({ path }: Parameter, given: State, expected: State): void {
  const [has, wants] = [given, expected].map((state) =>
    Object.keys(state)
      .filter((name) => name !== sinceKey)
      .sort(),
  );
  if (has!.join() === wants!.join()) return;
  throw new StateError(`the optimizer state of '${path}' has the entries ${has!.join(', ')}; this optimizer has ${wants!.join(', ')}`, {
    path,
    given: has,
    expected: wants,
    help: 'Resume with the optimizer, and the storage of its state, that the checkpoint was made with.',
  });
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
