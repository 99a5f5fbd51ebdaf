import { Add, addN, engine, keep, Reshape, reshape, type Tensor } from '@tensorflow/tfjs-core';
import { ShapeError, StateError } from './errors.ts';
import { remadeOf, sharing, thinOut, type Remade, type SavingNode } from './thin-record.ts';

/**
 * One recorded forward. tfjs's own entry (`grads`) runs forward and backward in one call, keeps every intermediate
 * gradient until its end and leaves its saved tensors behind when something throws; here the two halves are apart, each
 * saved tensor goes as soon as the walk has passed it, and a record can be dropped.
 */
export interface Tape<V> {
  /** What the forward returned; the caller's. */
  readonly value: V;
  /**
   * Vector-Jacobian product: gradients of Σ ⟨cotangent, output⟩ with respect to `xs`, undefined where nothing leads
   * from that x to the outputs. New tensors, the caller's. Once only: it consumes the record.
   */
  pull(xs: readonly Tensor[], cotangents: readonly Cotangent[]): (Tensor | undefined)[];
  /**
   * The same one x at a time, each as soon as nothing more can be added to its gradient, so that it may go before the next
   * one comes. What lives from one to the next is kept, whatever scope is around, so that the caller may await in
   * between; gradients are kept too, and the caller's to dispose. To be run to its end or left by `return`.
   */
  pullEach(xs: readonly Tensor[], cotangents: readonly Cotangent[]): Generator<Pulled, void, undefined>;
  /**
   * Frees what is saved and nearly free to make again: results of norms and activations (`withGradient`'s `remake`). Each is
   * made once more as the walk comes to its last reader; gradients are the same bit for bit.
   */
  thin(): void;
  /** What `thin` would free, each beside the same made again, which is the caller's: for checks, before `thin`. */
  remade(): readonly Remade[];
  /** Frees what the forward saved; nothing after `pull`. */
  dispose(): void;
}

/** Which x, and its gradient. */
export type Pulled = readonly [x: number, gradient: Tensor | undefined];

export interface Cotangent {
  /** A tensor that the recorded function returned, f32. */
  readonly of: Tensor;
  /** Same shape; stays the caller's. */
  readonly value: Tensor;
}

interface TapeNode extends SavingNode {
  readonly inputs: Readonly<Record<string, Tensor>>;
  readonly gradient?: (dys: (Tensor | null)[]) => Readonly<Record<string, () => Tensor>>;
}

interface EngineState {
  activeTape: TapeNode[] | null;
  gradientDepth: number;
  kernelDepth: number;
}

/** tfjs declares its engine's state by types of its own; these three fields are all that recording needs. */
const engineState = (): EngineState => engine().state as unknown as EngineState;

/**
 * Runs `forward` in a tidy with recording on. Works inside a gradient too: the record around it is set aside. What a
 * gradient function reads must be saved by its op or be made outside of `forward`: the tidy frees everything else.
 */
export function recordTape<V>(forward: () => V): Tape<V> {
  const state = engineState();
  const { activeTape, gradientDepth, kernelDepth } = state;
  const nodes: TapeNode[] = [];
  state.activeTape = Object.assign([], { push: (node: TapeNode) => nodes.push(lighter(node)) });
  state.gradientDepth = 1;
  state.kernelDepth = 0;
  let value: V;
  try {
    value = engine().tidy(forward as never) as V;
  } catch (error) {
    releaseSaved(nodes);
    throw error;
  } finally {
    Object.assign(state, { activeTape, gradientDepth, kernelDepth });
  }
  let live: TapeNode[] | undefined = nodes;
  let fill: ((at: number) => void) | undefined;
  const held = (): readonly TapeNode[] => {
    if (live === undefined) throw new StateError('internal: a tape was used after it was pulled');
    return live;
  };
  const consume = (): Steps => {
    const steps = { nodes: held(), fill };
    live = undefined;
    return steps;
  };
  return {
    value,
    pull: (xs, cotangents) => {
      const found: (Tensor | undefined)[] = [];
      for (const [x, gradient] of walk(consume(), xs, cotangents)) found[x] = gradient;
      return found;
    },
    pullEach: (xs, cotangents) => walk(consume(), xs, cotangents, keep),
    thin: () => {
      fill ??= thinOut(held());
    },
    remade: () => remadeOf(held()),
    dispose: () => {
      if (live !== undefined) releaseSaved(live);
      live = undefined;
    },
  };
}

/**
 * Values and gradients in one go: `cotangents` are chosen from the values (their shapes are known only then).
 * @throws whatever `forward` throws; nothing is left behind
 */
export function gradientsOf<V>(
  forward: () => V,
  xs: readonly Tensor[],
  cotangents: (value: V) => readonly Cotangent[],
): { value: V; gradients: (Tensor | undefined)[] } {
  const tape = recordTape(forward);
  try {
    return { value: tape.value, gradients: tape.pull(xs, cotangents(tape.value)) };
  } finally {
    tape.dispose();
  }
}

/**
 * A tensor that the tape knows a value by which is never formed: a shape over the buffer of another tensor. Reading it
 * gives nothing of meaning; gradients for it are of its shape. No bytes of its own.
 */
export const standIn = (shape: readonly number[], holder: Tensor): Tensor => sharing(holder, { shape, dtype: 'float32' });

/**
 * tfjs saves both sides of every sum and what every reshape came from, and their gradients look at nothing but the
 * shapes: a residual stream would keep two hidden states a block for that.
 */
function lighter(node: TapeNode): TapeNode {
  const gradient = byShape(node);
  if (gradient === undefined) return node;
  releaseSaved([node]);
  return { ...node, saved: [], gradient };
}

function byShape({ kernelName, inputs, outputs }: TapeNode): TapeNode['gradient'] {
  if (kernelName === Reshape) return ([dy]) => ({ x: () => reshape(dy!, inputs['x']!.shape) });
  const like = outputs[0]?.shape.join();
  if (kernelName !== Add || inputs['a']!.shape.join() !== like || inputs['b']!.shape.join() !== like) return undefined;
  return ([dy]) => ({ a: () => dy!, b: () => dy! });
}

function releaseSaved(nodes: readonly TapeNode[]): void {
  for (const { saved } of nodes) saved?.forEach((tensor) => tensor.dispose());
}

interface Steps {
  readonly nodes: readonly TapeNode[];
  /** Of a thinned record: makes again what a node needs. */
  readonly fill: ((at: number) => void) | undefined;
}

/** @param own what is done with a tensor that lives from one node to the next */
function* walk(
  { nodes, fill }: Steps,
  xs: readonly Tensor[],
  cotangents: readonly Cotangent[],
  own: (tensor: Tensor) => Tensor = (tensor) => tensor,
): Generator<Pulled, void, undefined> {
  const held = createHolder(own);
  let at = nodes.length;
  try {
    for (const { of, value } of cotangents) {
      sameShape('cotangent', value, of);
      held.add(of.id, value, true);
    }
    const wanted = new Set(xs.map(({ id }) => id));
    const fromX = reachable(nodes, wanted);
    const finalAt = lastReaders(nodes, xs);
    while (at-- > 0) {
      const node = nodes[at]!;
      // What has no gradient here leads to no output: a node's outputs are read by later nodes only, all of them done.
      if (fromX[at] && node.outputs.some(({ id }) => held.has(id))) {
        fill?.(at);
        pullNode(node, fromX[at]!, held);
      }
      releaseSaved([node]);
      for (const { id } of node.outputs) if (!wanted.has(id)) held.drop(id);
      for (const x of finalAt.get(at) ?? []) yield [x, held.take(xs[x]!.id)];
    }
    for (const x of finalAt.get(-1) ?? []) yield [x, held.take(xs[x]!.id)];
  } finally {
    releaseSaved(nodes.slice(0, at + 1));
    held.dropAll();
  }
}

/** For each node the xs of which it is the first reader, and so the last to add to their gradients; under -1 the others. */
function lastReaders(nodes: readonly TapeNode[], xs: readonly Tensor[]): ReadonlyMap<number, readonly number[]> {
  const first = new Map<number, number>();
  for (const [at, { inputs, outputs }] of nodes.entries()) {
    for (const { id } of Object.values(inputs)) if (!first.has(id)) first.set(id, at);
    // What a node made passes its gradient on to that node, after all its readers.
    for (const { id } of outputs) first.set(id, -1);
  }
  const found = new Map<number, number[]>();
  for (const [x, { id }] of xs.entries()) {
    const at = first.get(id) ?? -1;
    found.set(at, [...(found.get(at) ?? []), x]);
  }
  return found;
}

/** For each node the names of the inputs that depend on an x; undefined where none does. */
function reachable(nodes: readonly TapeNode[], wanted: ReadonlySet<number>): (readonly string[] | undefined)[] {
  const fromX = new Set(wanted);
  return nodes.map(({ inputs, outputs }) => {
    const names = Object.keys(inputs).filter((name) => fromX.has(inputs[name]!.id));
    if (names.length === 0) return undefined;
    for (const { id } of outputs) fromX.add(id);
    return names;
  });
}

function pullNode(node: TapeNode, names: readonly string[], held: Holder): void {
  const { gradient, inputs, outputs, kernelName } = node;
  if (gradient === undefined)
    throw new StateError(`${kernelName} has no gradient`, {
      kernelName,
      help: 'Compose the forward from other ops, or give it a gradient with withGradient.',
    });
  const dys = outputs.map(({ id }) => held.get(id) ?? null);
  const dxs = engine().tidy(() => {
    const pulls = gradient(dys);
    return names.map((name) => {
      const pull = pulls[name];
      if (pull === undefined) throw new StateError(`${kernelName} has no gradient for its input '${name}'`, { kernelName, input: name });
      return pull();
    });
  });
  for (const [i, name] of names.entries()) {
    sameShape(`gradient of ${kernelName} for '${name}'`, dxs[i]!, inputs[name]!);
    held.add(inputs[name]!.id, dxs[i]!);
  }
}

function sameShape(what: string, given: Tensor, like: Tensor): void {
  if (given.dtype === 'float32' && given.shape.join() === like.shape.join()) return;
  throw new ShapeError(`${what} must be float32 [${like.shape}], got ${given.dtype} [${given.shape}]`, {
    given: given.shape,
    expected: like.shape,
  });
}

/** What one call adds up at most: a WebGPU kernel binds at least this many inputs beside its output. */
const mostTerms = 7;

/**
 * Gradients by tensor id: terms, which are added up when the sum is asked for, all in one pass. One tensor may stand for
 * several ids (an op may hand dy through), so holders are counted.
 */
interface Holder {
  has(id: number): boolean;
  get(id: number): Tensor | undefined;
  /** Adds to what the id has. `borrowed` tensors are never disposed. */
  add(id: number, value: Tensor, borrowed?: boolean): void;
  drop(id: number): void;
  /** The id's gradient as a tensor of the taker's own. */
  take(id: number): Tensor | undefined;
  dropAll(): void;
}

function createHolder(own: (tensor: Tensor) => Tensor): Holder {
  const byId = new Map<number, Tensor[]>();
  const count = new Map<Tensor, number>();
  const borrowed = new Set<Tensor>();
  const retain = (value: Tensor): unknown => count.set(value, (count.get(value) ?? 0) + 1);
  const release = (value: Tensor): void => {
    const left = count.get(value)! - 1;
    count.set(value, left);
    if (left > 0) return;
    count.delete(value);
    if (!borrowed.has(value)) value.dispose();
  };
  const drop = (id: number): void => {
    const terms = byId.get(id);
    byId.delete(id);
    terms?.forEach(release);
  };
  const get = (id: number): Tensor | undefined => {
    const terms = byId.get(id);
    if (terms === undefined || terms.length === 1) return terms?.[0];
    const total = own(addN(terms));
    retain(total);
    byId.set(id, [total]);
    terms.forEach(release);
    return total;
  };
  return {
    has: (id) => byId.has(id),
    get,
    add: (id, value, isBorrowed = false) => {
      if (isBorrowed) borrowed.add(value);
      else own(value);
      retain(value);
      const terms = byId.get(id);
      if (terms === undefined) byId.set(id, [value]);
      else if (terms.push(value) === mostTerms) get(id);
    },
    drop,
    take: (id) => {
      const value = get(id);
      if (value === undefined) return undefined;
      if (borrowed.has(value) || count.get(value)! > 1) return own(value.clone());
      byId.delete(id);
      count.delete(value);
      return value;
    },
    dropAll: () => [...byId.keys()].forEach(drop),
  };
}
