import {
  add,
  addNoise,
  plainView,
  tidy,
  createDraw,
  ConfigError,
  withGradient,
  type Activations,
  type Draw,
  type Parameter,
  type Range,
  type Tensor,
  type View,
} from '@niwaki/tensor';
import type { Weight } from './weight.ts';

export interface Batch {
  readonly [field: string]: Tensor | readonly number[] | undefined;
}

/** KV cache and per-request state of generation. */
export interface Session {
  [key: string]: unknown;
}

export interface At {
  /** Counts every step tried: data, schedule and noise follow it. */
  readonly attempt: number;
  readonly phaseStep: number;
  readonly micro: number;
  readonly pass: number;
}

/** What one forward needs to know. Passed explicitly, never global. */
export interface Call {
  readonly batch: Batch;
  readonly view: View;
  readonly training: boolean;
  readonly at: At;
  readonly draw: Draw;
  /** THE read: view, perturbation, gradient tracking. Nothing else touches a stored value. */
  value(parameter: Parameter): Tensor;
  /** Whether a gradient may flow into what `value` gives; where it cannot, nothing needs to be kept for it. */
  tracks(parameter: Parameter): boolean;
  /** What the tape knows a parameter by, to give it a gradient without reading it: its entries may be nothing. Absent where it is not watched as stored. */
  watched(parameter: Parameter): Tensor | undefined;
  /**
   * The sum of a parameter's gradient so far, for whoever makes more of it and can add to that where it lies: taken once, the
   * taker's, whose gradient then is the new sum. Undefined where there is none yet, or nobody keeps one.
   */
  takeGradient(parameter: Parameter): Tensor | undefined;
  /** A discrete choice: recorded once, replayed when a block is computed again. */
  decide<T>(name: string, choose: () => T): T;
  /** Statistics, block-level losses, hidden states. */
  emit(name: string, value: Tensor): void;
  /** Whether somebody asked for the gradient of a frozen matrix. */
  wants(weight: Weight): boolean;
  give(weight: Weight, gradient: (rows?: Range) => Tensor): void;
  /**
   * Nobody reads what this call gives: a stage is computed again only for what its backward pass keeps. The product at its
   * end may then be left out (`unwritten`).
   */
  readonly unread?: boolean;
  readonly session?: Session;
  /** What the stage that runs was given, for adapters that read more than their site's input. */
  readonly streams?: Readonly<Record<string, Tensor>>;
  /** How few rows meet packed matrices; absent = exact. */
  readonly activations?: Activations;
}

/** The same call where what it gives is read. */
export const asRead = (call: Call): Call => (call.unread === true ? { ...call, unread: false } : call);

export interface CallOptions {
  readonly batch: Batch;
  readonly view?: View;
  readonly training?: boolean;
  readonly at?: Partial<At>;
  readonly draw?: Draw;
  /** Tensors that stand for parameters while gradients are taken: the tape watches them. */
  readonly watched?: ReadonlyMap<Parameter, Tensor>;
  /** Sums of gradients for `takeGradient`, which takes them out. */
  readonly gradients?: Map<Parameter, Tensor>;
  /** Choices of the first pass, filled there and replayed by recomputation. */
  readonly decisions?: Map<string, unknown>;
  readonly emitted?: Map<string, Tensor[]>;
  readonly wanted?: ReadonlySet<Weight>;
  readonly onGradient?: (weight: Weight, gradient: (rows?: Range) => Tensor) => void;
  readonly session?: Session;
  readonly activations?: Activations;
}

export function createCall(options: CallOptions): Call {
  const {
    batch,
    view = plainView,
    training = false,
    watched,
    gradients,
    decisions,
    emitted,
    wanted,
    onGradient,
    session,
    activations,
  } = options;
  const at: At = { attempt: 0, phaseStep: 0, micro: 0, pass: 0, ...options.at };
  return {
    batch,
    view,
    training,
    at,
    draw: options.draw ?? createDraw(0, at.attempt),
    value: (parameter) => {
      const stored = watched?.get(parameter);
      return readAs(view, parameter, stored);
    },
    watched: (parameter) => (view.of(parameter).kind === 'plain' ? watched?.get(parameter) : undefined),
    tracks: (parameter) => (watched?.has(parameter) ?? false) || view.of(parameter).kind === 'derived',
    takeGradient: (parameter) => {
      if (view.of(parameter).kind !== 'plain') return undefined;
      const sum = gradients?.get(parameter);
      gradients?.delete(parameter);
      return sum;
    },
    decide: (name, choose) => {
      if (decisions === undefined) return choose();
      if (!decisions.has(name)) decisions.set(name, choose());
      return decisions.get(name) as ReturnType<typeof choose>;
    },
    emit: (name, value) => {
      if (emitted === undefined) return;
      const list = emitted.get(name) ?? [];
      list.push(value);
      emitted.set(name, list);
    },
    wants: (weight) => wanted?.has(weight) ?? false,
    give: (weight, gradient) => onGradient?.(weight, gradient),
    ...(session === undefined ? {} : { session }),
    ...(activations === undefined ? {} : { activations }),
  };
}

function readAs(view: View, parameter: Parameter, watched: Tensor | undefined): Tensor {
  const read = view.of(parameter);
  const stored = (): Tensor => {
    if (watched === undefined || parameter.stored === undefined) return watched ?? parameter.read();
    return withGradient(
      [watched],
      () => parameter.read(),
      (dy) => [dy],
    );
  };
  switch (read.kind) {
    case 'plain':
      return stored();
    case 'offset':
      return add(stored(), read.value);
    case 'other':
      return read.parameter.read();
    case 'derived':
      return read.value();
    case 'noise':
      if (read.mask !== undefined) throw new ConfigError(`masked noise on '${parameter.path}' has no reader`, { path: parameter.path });
      return tidy(() => addNoise(stored(), read.noise, 'gaussian', read.scale));
  }
}
