import { scalar, StateError, type Parameter, type Scalar } from '@niwaki/tensor';
import type { State, UpdateContext } from './transform.ts';

/**
 * A parameter's stand-in for a transform that works on a smaller form of its gradient: the same name and role, another
 * shape, and no value of its own.
 */
export function partOf({ path, role }: Parameter, shape: readonly number[]): Parameter {
  const none = (): never => {
    throw new StateError(`a transform inside a subspace read or wrote the value of '${path}', of which it sees a projection only`, {
      path,
      help: 'Put what needs the value (L2 decay) outside.',
    });
  };
  return {
    path,
    shape,
    role,
    trainable: true,
    version: 0,
    bytes: () => 0,
    read: none,
    write: none,
    commit: none,
    raw: none,
    dispose: () => {},
  };
}

/** The context with another count of updates, for a state that began later than the run: its bias correction is its own. */
export function countedFrom(context: UpdateContext, updates: number): UpdateContext {
  const { once } = context;
  const named = (name: string): string => `${name} of update ${updates}`;
  const count = (): Scalar => scalar(updates);
  return {
    ...context,
    updates: once?.(named('count'), count) ?? count(),
    ...(once && { once: (name, make) => once(named(name), make) }),
  };
}

/** State entries under a part's name: `part.entry`. */
export function prefixed<T>(record: Readonly<Record<string, T>>, part: string): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [`${part}.${name}`, value]));
}

/** The entries of one part, by their own names. */
export function substate(state: State, part: string): State {
  const own = `${part}.`;
  return Object.fromEntries(
    Object.entries(state)
      .filter(([name]) => name.startsWith(own))
      .map(([name, value]) => [name.slice(own.length), value]),
  );
}
