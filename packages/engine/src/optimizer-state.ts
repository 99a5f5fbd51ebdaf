import { choose, dispose, NotFoundError, StateError, tidy, type Gradient, type Parameter, type Scalar, type Tensor } from '@niwaki/tensor';
import { writable, type State, type Transform, type UpdateContext } from '@niwaki/optim';
import { dense, tensorsOf } from './gradient.ts';
import type { WaitingState } from './participant.ts';
import { keepState, onDevice, onHost, tensorsIn, type SavedState } from './saved-state.ts';

/** The optimizer's state, one record a parameter, and the way an update reaches a parameter. It owns the tensors. */
export interface OptimizerStates {
  get(parameter: Parameter): State;
  /** Between steps: another state of the same form. What only the old one holds is disposed. */
  replace(parameter: Parameter, state: State): void;
  /**
   * Before `select`: those whose state, where they have one, waits until they train again.
   * @param updates applied updates so far
   */
  rest(idle: ReadonlyMap<Parameter, WaitingState>, updates: number): Promise<void>;
  /**
   * Those that train from now on: one that waited goes on with its state, a new one begins. The state of all others is freed.
   * @param updates applied updates so far, from which a new state counts its own
   * @param idle those that go on waiting
   */
  select(chosen: ReadonlySet<Parameter>, updates: number, idle?: Pick<ReadonlySet<Parameter>, 'has'>): void;
  /** Updates of the run that this parameter's state does not count: those before it was made, and those it waited. */
  since(parameter: Parameter): number;
  /** The gradient in a kind that the optimizer takes. New tensors where it had to be written out. */
  accepted(gradient: Gradient, parameter: Parameter): Gradient;
  /** Host work, when due; what it replaces is disposed. */
  prepare(gradient: Gradient, context: UpdateContext): Promise<void>;
  /**
   * update → commit, for one parameter. Where `ok` is 0 the parameter and its state stay as they are, bit for bit. Takes the
   * gradient over: what is new is written over it and over the state, where optimizer and device can.
   */
  apply(gradient: Gradient, ok: Scalar, context: UpdateContext): void;
  /** Ends a step: numbers in the state, which no device can choose, take their new value if it was applied. */
  settle(applied: boolean): void;
  /** Those that wait included, where they are. */
  byPath(): ReadonlyMap<string, SavedState>;
  restore(states: ReadonlyMap<string, SavedState>): void;
  /** On the device. */
  bytes(): number;
  dispose(): void;
}

/** The state of a parameter that does not train now, and the updates that it has counted. */
interface Waiting {
  readonly state: SavedState;
  readonly counted: number;
}

/** Beside the entries of a saved state. */
const marks = {
  /** Of one that began after the run did, or waited: where it counts from. */
  since: '#since',
  /** Of one that waits: what it has counted. */
  counted: '#counted',
} as const;

/** No state is made before the first `select`. */
export function createOptimizerStates(optimizer: Transform, parameters: readonly Parameter[]): OptimizerStates {
  const states = new Map<Parameter, State>();
  const numbers = new Map<Parameter, Record<string, number>>();
  const began = new Map<Parameter, number>();
  const waiting = new Map<Parameter, Waiting>();
  const since = (parameter: Parameter): number => began.get(parameter) ?? 0;

  const all = (): Tensor[] => [...states.values(), ...[...waiting.values()].map(({ state }) => state)].flatMap(tensorsIn);
  const forget = (parameter: Parameter): void => {
    states.delete(parameter);
    began.delete(parameter);
  };
  const replace = (parameter: Parameter, next: State): void => {
    const old = states.get(parameter)!;
    states.set(parameter, keepState(next));
    const alive = new Set(tensorsIn(next));
    for (const tensor of tensorsIn(old)) if (!alive.has(tensor)) tensor.dispose();
  };

  const accepted = (gradient: Gradient, parameter: Parameter): Gradient =>
    gradient.kind === 'dense' || optimizer.accepts?.includes(gradient.kind)
      ? gradient
      : { kind: 'dense', value: dense(gradient, parameter) };

  return {
    get: (parameter) => states.get(parameter)!,
    replace,
    rest: async (idle, updates) => {
      for (const [parameter, where] of idle) {
        const state = states.get(parameter);
        if (state !== undefined) {
          waiting.set(parameter, { state, counted: updates - since(parameter) });
          forget(parameter);
        }
        const held = waiting.get(parameter);
        if (held === undefined) continue;
        waiting.set(parameter, { ...held, state: where === 'keep' ? onDevice(held.state) : await onHost(held.state) });
      }
    },
    select: (chosen, updates, idle = new Set()) => {
      for (const [parameter, state] of states) {
        if (chosen.has(parameter)) continue;
        dispose(tensorsIn(state));
        forget(parameter);
      }
      for (const [parameter, { state, counted }] of waiting) {
        if (idle.has(parameter)) continue;
        waiting.delete(parameter);
        if (!chosen.has(parameter)) dispose(tensorsIn(state));
        else {
          states.set(parameter, onDevice(state));
          began.set(parameter, updates - counted);
        }
      }
      for (const parameter of parameters) {
        if (!chosen.has(parameter) || states.has(parameter)) continue;
        states.set(parameter, keepState(tidy(() => optimizer.init(parameter, parameters) as Record<string, Tensor | number>)));
        began.set(parameter, updates);
      }
    },
    since,
    accepted,
    prepare: async (gradient, context) => {
      const old = states.get(context.parameter)!;
      if (optimizer.prepare === undefined || !optimizer.due?.(old, context)) return;
      replace(context.parameter, await optimizer.prepare(gradient, old, context));
    },
    apply: (gradient, ok, context) => {
      const { parameter } = context;
      const old = states.get(parameter)!;
      const next = tidy(() => {
        const given = accepted(gradient, parameter);
        const made = optimizer.update(given, old, { ...context, ok, owned: true });
        const { update, state, how, gated = false } = made;
        // Before the commit, which may then write over an update that lies in the gradient's memory.
        const passedOn = new Set(tensorsOf(update));
        dispose([...tensorsOf(gradient), ...tensorsOf(given)].filter((tensor) => !passedOn.has(tensor)));
        const noise = context.draw.at(`${parameter.path}#rounding`);
        parameter.commit(update, ok, { noise, ...how, owned: writable(made, given, true) });
        const fresh: Record<string, number> = {};
        const chosen = Object.entries(state).map(([name, value]): [string, Tensor | number] => {
          if (typeof value !== 'number') return [name, gated ? value : chooseState(ok, value, old[name])];
          fresh[name] = value;
          return [name, old[name] ?? value];
        });
        numbers.set(parameter, fresh);
        return Object.fromEntries(chosen);
      });
      dispose(tensorsOf(gradient));
      replace(parameter, next);
    },
    settle: (applied) => {
      if (applied)
        for (const [parameter, fresh] of numbers)
          if (Object.keys(fresh).length > 0) states.set(parameter, { ...states.get(parameter)!, ...fresh });
      numbers.clear();
    },
    byPath: () =>
      new Map([
        ...[...states].map(([parameter, state]): [string, SavedState] => {
          const from = since(parameter);
          return [parameter.path, from === 0 ? state : { ...state, [marks.since]: from }];
        }),
        ...[...waiting].map(([{ path }, { state, counted }]): [string, SavedState] => [path, { ...state, [marks.counted]: counted }]),
      ]),
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
      for (const { state } of waiting.values()) dispose(tensorsIn(state));
      waiting.clear();
      for (const [path, { [marks.since]: from = 0, [marks.counted]: counted, ...state }] of given) {
        const parameter = known.get(path)!;
        if (typeof counted === 'number') {
          dispose(tensorsIn(states.get(parameter) ?? {}));
          forget(parameter);
          waiting.set(parameter, { state: keepState(state), counted });
          continue;
        }
        const next = onDevice(state);
        if (states.has(parameter)) replace(parameter, next);
        else states.set(parameter, next);
        began.set(parameter, from as number);
      }
    },
    bytes: () => all().reduce((sum, { size }) => sum + size * 4, 0),
    dispose: () => {
      dispose(all());
      states.clear();
      waiting.clear();
    },
  };
}

function checkNames({ path }: Parameter, given: SavedState, expected: State): void {
  const [has, wants] = [given, expected].map((state) =>
    Object.keys(state)
      .filter((name) => !(Object.values(marks) as string[]).includes(name))
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
