import {
  add,
  checkCount,
  ConfigError,
  conflictsOf,
  mul,
  outOfRange,
  refuse,
  reshape,
  sign,
  sub,
  tidy,
  zerosLike,
  type Gradient,
  type Noise,
  type Parameter,
  type Tensor,
  type Tensor2D,
  type Traits,
} from '@niwaki/tensor';
import { countedFrom, partOf, prefixed, substate, transformParty, type State, type Transform } from '@niwaki/optim';

/** A part of a matrix's gradient that is cheaper to keep moments for, and the way back. `up` after `down` is an orthogonal projection. */
export interface Subspace {
  /** Shape of what `down` gives. */
  readonly shape: readonly [number, number];
  /** What says where the subspace lies, before it was ever chosen: zeros of the right shapes. */
  initial(): Record<string, Tensor>;
  /** Chooses it, by the gradient of the step or by chance. New tensors, the caller's. */
  choose(gradient: Tensor2D, address: Noise): Promise<Record<string, Tensor>>;
  down(gradient: Tensor2D, at: State): Tensor2D;
  up(small: Tensor2D, at: State): Tensor2D;
  /** What the subspace leaves out of a gradient; default gradient - up(down(gradient)). */
  rest?(gradient: Tensor2D, at: State): Tensor2D;
}

/** When a subspace is chosen again, where that follows from how the choices turn out. Its own state is small: numbers, and tensors of a few entries. */
export interface Pace {
  /** Whether the gap changes. */
  readonly varies: boolean;
  initial(): Record<string, Tensor | number>;
  /** The subspace is chosen where the applied updates so far are a multiple of this. */
  gap(state: State): number;
  /** After a choice: from where the subspace was to where it is, not before there was one. May read back. New tensors, the caller's. */
  after(state: State, before: State, now: State): Promise<Record<string, Tensor | number>>;
}

export interface SubspaceOptions {
  /** The subspace for a matrix [rows, columns], flattened to two sides; 'whole': the transform inside gets all of it; 'none': all of it is rest. */
  readonly of: (parameter: Parameter, shape: readonly [number, number]) => Subspace | 'whole' | 'none';
  /** Updates from one choice of the subspace to the next. */
  readonly every: number;
  /** Instead of always `every`; for a state that outlives a choice (`reset` false). */
  readonly pace?: Pace;
  /** Multiplies what comes back. */
  readonly scale: number;
  /** Whether a new choice starts the state inside, and its bias correction, anew. */
  readonly reset: boolean;
  /** What is done with the rest of the gradient: its sign, itself, nothing; times a number. */
  readonly rest?: Rest;
}

/** Its sign or itself, times a number. */
export interface Rest {
  readonly rule: 'sign' | 'sgd';
  readonly scale: number;
}

/** Of the transform inside. */
const subspaceTraits: Traits = {
  forbids: ['host-work', 'global-norm'],
  help: { 'global-norm': 'Clip before, as the first part of a chain.' },
};

/**
 * Runs a transform on the part of each gradient that lies in a subspace, and brings its update back: what GaLore, FRUGAL
 * and their like share. The subspace is chosen on the host, between the pieces of a step, from the step's whole gradient,
 * and stays for `every` applied updates. State: the transform's for the small shape, and the subspace's own tensors.
 */
export function inSubspace(
  name: string,
  inner: Transform,
  { of, every, scale, reset, rest, pace = always(every) }: SubspaceOptions,
): Transform {
  checkCount(name, 'every', every);
  if (!(scale >= 0 && scale < Infinity)) throw outOfRange(name, 'scale', scale, 'a finite number of at least 0');
  if (reset && pace.varies) {
    throw new ConfigError(`${name}: a state that begins anew with each choice needs the same number of updates in between`, { reset });
  }
  refuseInside(name, inner);
  const subspaces = new WeakMap<Parameter, Subspace | 'whole' | 'none'>();
  const subspaceOf = (parameter: Parameter): Subspace | 'whole' | 'none' => {
    const known = subspaces.get(parameter) ?? of(parameter, sidesOf(parameter));
    subspaces.set(parameter, known);
    return known;
  };
  const restOf = (left: Tensor): Tensor => restUpdate(left, rest, scale);
  const fresh = (parameter: Parameter, subspace: Subspace): State => prefixed(inner.init(partOf(parameter, subspace.shape)), 'inner');

  return {
    name,
    init: (parameter, peers) => {
      const subspace = subspaceOf(parameter);
      if (subspace === 'whole') return inner.init(parameter, peers);
      if (subspace === 'none') return {};
      return { ...prefixed(subspace.initial(), 'at'), ...fresh(parameter, subspace), ...prefixed(pace.initial(), 'pace'), age: 0 };
    },
    due: (state) => typeof state['age'] === 'number' && state['age'] % pace.gap(substate(state, 'pace')) === 0,
    prepare: async (gradient, state, { parameter, draw }) => {
      const subspace = subspaceOf(parameter) as Subspace;
      const matrix = matrixOf(gradient, parameter);
      try {
        const at = await subspace.choose(matrix, draw.at(`${parameter.path}#subspace`));
        const paced = state['age'] === 0 ? {} : await pace.after(substate(state, 'pace'), substate(state, 'at'), at);
        const anew = reset ? tidy(() => fresh(parameter, subspace) as Record<string, Tensor | number>) : {};
        return { ...state, ...prefixed(at, 'at'), ...prefixed(paced, 'pace'), ...anew };
      } finally {
        matrix.dispose();
      }
    },
    update: (gradient, state, context) => {
      const { parameter } = context;
      const { age } = state;
      const subspace = subspaceOf(parameter);
      if (subspace === 'none') return { update: { kind: 'dense', value: restOf(valueOf(gradient)) }, state };
      if (subspace === 'whole' || typeof age !== 'number') return inner.update(gradient, state, context);
      const at = substate(state, 'at');
      const matrix = matrixOf(gradient, parameter);
      const own = { ...countedFrom(context, (reset ? age % every : age) + 1), parameter: partOf(parameter, subspace.shape) };
      const made = inner.update({ kind: 'dense', value: subspace.down(matrix, at) }, substate(state, 'inner'), own);
      // A factor that the inner transform leaves to the commit is not the rest's.
      const { scale: factor = 1, ...how } = made.how ?? {};
      let update: Tensor = mul(subspace.up(valueOf(made.update) as Tensor2D, at), scale * factor);
      if (rest !== undefined && rest.scale > 0) {
        const left = subspace.rest?.(matrix, at) ?? sub(matrix, subspace.up(subspace.down(matrix, at), at));
        update = add(update, restOf(left));
      }
      return {
        update: { kind: 'dense', value: reshape(update, [...parameter.shape]) },
        state: { ...prefixed(at, 'at'), ...prefixed(made.state, 'inner'), ...prefixed(substate(state, 'pace'), 'pace'), age: age + 1 },
        ...(made.how && { how }),
        gated: made.gated ?? false,
      };
    },
  };
}

/** @throws ConfigError for a transform with host work of its own, or that measures whole gradients */
export function refuseInside(name: string, inner: Transform): void {
  refuse(conflictsOf({ name, traits: subspaceTraits }, transformParty(inner), 'transform'), { inner: inner.name });
}

const always = (every: number): Pace => ({ varies: false, initial: () => ({}), gap: () => every, after: async () => ({}) });

/** What is done with the part of a gradient that no state is kept for. */
export function restUpdate(left: Tensor, rest: Rest | undefined, scale: number): Tensor {
  if (rest === undefined) return zerosLike(left);
  return mul(rest.rule === 'sign' ? sign(left) : left, rest.scale * scale);
}

/** A parameter's two sides: what comes after the first is one, as in the kernel of a convolution. */
function sidesOf({ shape }: Parameter): readonly [number, number] {
  const [rows = 1, ...others] = shape;
  return [rows, others.reduce((product, side) => product * side, 1)];
}

function matrixOf(gradient: Gradient, parameter: Parameter): Tensor2D {
  return reshape(valueOf(gradient), [...sidesOf(parameter)]) as Tensor2D;
}

export function valueOf(gradient: Gradient): Tensor {
  if (gradient.kind === 'dense') return gradient.value;
  throw new ConfigError(`internal: a subspace was given a gradient of the kind '${gradient.kind}'`, { kind: gradient.kind });
}
