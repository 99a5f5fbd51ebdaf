import {
  nounWith,
  type BlockQuantized,
  type Commit,
  type Described,
  type Draw,
  type Gradient,
  type Noun,
  type Parameter,
  type Scalar,
  type Tensor,
  type Traits,
} from '@niwaki/tensor';

export type State = Readonly<Record<string, Tensor | number>>;

/**
 * How a gradient becomes an update, per parameter. State is a plain record of tensors and numbers, so that storing it in
 * 8 bits, dropping entries, saving and resuming are generic. `options` are what a run that goes on must find again; those of
 * a chain are its parts.
 */
export interface Transform<S extends State = State> extends Described {
  /** Beside what follows from `measure` and `prepare`. */
  readonly traits?: Traits;
  /** What `context.rate` is where nobody gives a schedule. */
  readonly learningRate?: number;
  /** Gradient kinds taken as they are; default dense only: others are materialized first. */
  readonly accepts?: readonly Gradient['kind'][];
  /** How each state tensor is laid out. */
  readonly layout?: { readonly [K in keyof S]?: StateLayout };
  /** @param peers everything the optimizer is for, in the model's order, this parameter too; default this one alone */
  init(parameter: Parameter, peers?: readonly Parameter[]): S;
  /** `prepare` may give a state other entries than `init` did: a saved one is taken as it is. */
  readonly varies?: boolean;
  /** Pure, but for what `context.owned` allows: returns new tensors, disposes nothing. Runs inside the step's tidy. */
  update(gradient: Gradient, state: S, context: UpdateContext): Updated<S>;
  /**
   * `update` from and to a state in 8 bits: the same numbers, without a copy of it in f32. Only where every tensor of `layout`
   * can be in 8 bits. Absent: the state is decoded before `update` and encoded after it.
   */
  updateCoded?(gradient: Gradient, state: CodedState<S>, context: UpdateContext, coding: StateCoding): CodedUpdate<S>;
  /** Summed over all parameters of the step before any update (global clipping): needs every gradient held. */
  measure?(gradient: Gradient, state: S): Scalar;
  /** Host work between segments, awaited only when `due`. */
  due?(state: S, context: UpdateContext): boolean;
  prepare?(gradient: Gradient, state: S, context: UpdateContext): Promise<S>;
  /**
   * The state after some entries of the parameter gave their places to new ones: of these as their gradients so far tell,
   * or as at the start; of the others bit for bit as it was. Pure. Called through `beginEntries`.
   */
  begin?(state: S, entries: NewEntries, parameter: Parameter): S;
}

export interface Updated<S extends State = State> {
  /**
   * What a value moves by, but for the factor that `how` may have: the gradient itself, tensors of the state, or new ones that
   * nothing else holds.
   */
  readonly update: Gradient;
  readonly state: S;
  readonly how?: Commit;
  /** The tensors of `state` are the old ones, bit for bit, where `context.ok` is 0: nobody has to choose between them again. */
  readonly gated?: boolean;
}

/** A state whose every tensor is in 8 bits, signed as its layout says. */
export type CodedState<S> = { readonly [K in keyof S]: BlockQuantized };

export type CodedUpdate<S extends State = State> = Omit<Updated<S>, 'state'> & { readonly state: CodedState<S> };

/** How a state is in 8 bits; see `quantizeBlocks`. */
export interface StateCoding {
  readonly blockSize: number;
  readonly guard: boolean;
}

/** How one tensor of a state is laid out. */
export interface StateLayout {
  readonly per: 'entry' | 'row' | 'column' | 'tensor';
  readonly signed?: boolean;
  /** Counts, which a byte cannot hold: stored as they are where the rest of a state is in 8 bits. */
  readonly exact?: boolean;
}

/** Entries of a parameter that begin in the place of others, in tensors of its shape. */
export interface NewEntries {
  /** 1 where an entry is new, else 0; f32. */
  readonly fresh: Tensor;
  /** Mean of the gradients that a new entry would have had, over some steps, and of their squares. Absent: nobody looked. */
  readonly seen?: { readonly mean: Tensor; readonly meanSquare: Tensor; readonly steps: number };
  /** Updates that the parameter's state has counted. */
  readonly updates: number;
}

export interface UpdateContext {
  readonly parameter: Parameter;
  readonly attempt: number;
  /** Applied updates so far including this one, on the device: a refused step does not count. */
  readonly updates: Scalar;
  /** Learning rate of this step, from the schedule. */
  readonly rate: number;
  /** Part of the run that is done, [0, 1]. */
  readonly progress: number;
  /** Sum of `measure` over the parameters of the step. */
  readonly total?: Scalar;
  readonly draw: Draw;
  /** Whether the step is applied, 1 or 0, on the device. Absent outside a step. */
  readonly ok?: Scalar;
  /**
   * The tensors of the state and of the gradient are the update's to write into, where `heldOnce` says that nothing else holds
   * them: the caller reads none of them again. What is written over a state's tensor has the old bits where `ok` is 0.
   * Default false.
   */
  readonly owned?: boolean;
  /** A tensor made once a step and shared by all its parameters, by name; the step owns it. Absent outside a step. */
  once?<T extends Tensor = Scalar>(name: string, make: () => T): T;
}

export const aTransform: Noun = nounWith('an optimizer, as adamw() gives it', 'init', 'update');
