import {
  createDraw,
  denseParameter,
  keep,
  scalar,
  tensor,
  tidy,
  type Gradient,
  type Parameter,
  type Role,
  type Tensor,
} from '@niwaki/tensor';
import type { State, Transform, UpdateContext } from '@niwaki/optim';

/** One parameter and one transform, step by step, with the numbers of both in the open. */
export interface Trial {
  readonly parameter: Parameter;
  /** The state of now; the trial's. */
  state(): State;
  /** Value after each step, flat. */
  step(gradient: readonly number[], options: { rate: number; ok?: number }): Promise<number[]>;
  values(): number[];
  dispose(): void;
}

export interface TrialOptions {
  readonly shape?: readonly number[];
  readonly path?: string;
  readonly role?: Role;
  readonly seed?: number;
}

/** @param start the parameter's first values, flat; its shape is [length] unless one is given */
export function trial(transform: Transform, start: readonly number[], options: TrialOptions = {}): Trial {
  const { shape = [start.length], path = 'p.weight', role = 'matrix', seed = 0 } = options;
  const parameter = denseParameter(path, tensor([...start], [...shape]), { role, trainable: true });
  let state = kept(tidy(() => transform.init(parameter) as Record<string, Tensor | number>));
  let attempt = 0;
  let updates = 0;
  const replace = (next: State): void => {
    const alive = new Set(tensorsOf(kept(next)));
    for (const old of tensorsOf(state)) if (!alive.has(old)) old.dispose();
    state = next;
  };
  return {
    parameter,
    state: () => state,
    step: async (values, { rate, ok = 1 }) => {
      const [value, count] = [tensor([...values], [...shape]), scalar(updates + 1)];
      const gradient: Gradient = { kind: 'dense', value };
      const context: UpdateContext = { parameter, attempt, updates: count, rate, progress: 0, draw: createDraw(seed, attempt) };
      if (transform.due?.(state, context)) replace(await transform.prepare!(gradient, state, context));
      const next = tidy(() => {
        const made = transform.update(gradient, state, context);
        parameter.commit(made.update, scalar(ok), made.how);
        return made.state as Record<string, Tensor | number>;
      });
      replace(next);
      value.dispose();
      count.dispose();
      attempt++;
      updates += ok;
      return [...parameter.read().dataSync()];
    },
    values: () => [...parameter.read().dataSync()],
    dispose: () => {
      for (const each of tensorsOf(state)) each.dispose();
      parameter.dispose();
    },
  };
}

const tensorsOf = (state: State): Tensor[] => Object.values(state).filter((value): value is Tensor => typeof value !== 'number');

function kept<S extends State>(state: S): S {
  tensorsOf(state).forEach(keep);
  return state;
}

/** Bytes of a state's tensors. */
export const stateBytesOf = (state: State): number => tensorsOf(state).reduce((sum, { size }) => sum + 4 * size, 0);
