import { engine, mul, Multiply, tidy, type Tensor } from '@tensorflow/tfjs-core';

/**
 * A result of an op, made again from what the op's forward saved: by the same kernel from the same entries, so that it is the
 * same bit for bit.
 */
export type Remake = (saved: readonly Tensor[]) => Tensor;

const remakes = new WeakMap<Tensor, Remake>();

/** Says how `result` is made again. Only for what costs about as much as reading it: a norm, an activation. */
export function sayRemake(result: Tensor, remake: Remake): void {
  remakes.set(result, remake);
}

/** tfjs's own ops that save all that they read. */
const ofKernel: Readonly<Record<string, Remake>> = { [Multiply]: ([a, b]) => mul(a!, b!) };

/** What a node of a tape must have for it. */
export interface SavingNode {
  readonly kernelName: string;
  readonly outputs: readonly Tensor[];
  readonly saved?: Tensor[];
}

/** One buffer that is gone, and the places of the record that held it, in the order of the forward. */
interface Lost {
  readonly remake: Remake;
  /** What the node that made it saved. */
  readonly from: readonly Tensor[];
  readonly places: readonly Place[];
}

interface Place {
  readonly at: number;
  readonly saved: Tensor[];
  readonly index: number;
}

/**
 * Frees each saved value that nothing but the record holds and that an earlier node can make again.
 * @returns makes again what the node at a place needs, for it and all nodes before it; to be called from the last node down
 */
export function thinOut(nodes: readonly SavingNode[]): (at: number) => void {
  const lost = findLost(nodes);
  for (const { places } of lost.values()) for (const { saved, index } of places) saved[index]!.dispose();
  const fill = (needed: readonly Tensor[], at: number): void => {
    for (const { dataId } of needed) {
      const found = lost.get(dataId);
      if (found === undefined) continue;
      lost.delete(dataId);
      // It may have been made from what is gone itself.
      fill(found.from, at);
      const value = tidy(() => found.remake(found.from));
      for (const place of found.places) {
        if (place.at <= at) place.saved[place.index] = engine().keep(sharing(value, place.saved[place.index]!));
      }
      value.dispose();
    }
  };
  return (at) => fill(nodes[at]!.saved ?? [], at);
}

/** A saved value, and the same made again. */
export type Remade = readonly [kept: Tensor, again: Tensor];

/** What `thinOut` would free of a record that is whole. */
export const remadeOf = (nodes: readonly SavingNode[]): Remade[] =>
  [...findLost(nodes).values()].map(({ remake, from, places: [first] }) => [first!.saved[first!.index]!, tidy(() => remake(from))]);

function findLost(nodes: readonly SavingNode[]): Map<object, Lost> {
  const placesOf = new Map<object, Place[]>();
  for (const [at, { saved = [] }] of nodes.entries()) {
    for (const [index, { dataId }] of saved.entries()) {
      const places = placesOf.get(dataId) ?? [];
      placesOf.set(dataId, places);
      places.push({ at, saved, index });
    }
  }
  const lost = new Map<object, Lost>();
  for (const [at, { kernelName, outputs, saved: from = [] }] of nodes.entries()) {
    for (const output of outputs) {
      const remake = remakes.get(output) ?? ofKernel[kernelName];
      const places = placesOf.get(output.dataId);
      if (remake === undefined || places === undefined || places[0]!.at <= at) continue;
      // A stream or a decision may hold it too: then nothing would be freed.
      if (engine().backend.refCount(output.dataId) === places.length) lost.set(output.dataId, { remake, from, places });
    }
  }
  return lost;
}

/** A tensor over the buffer of another one, of a shape and a dtype of its own. */
export function sharing({ dataId }: Tensor, { shape, dtype }: Pick<Tensor, 'dtype'> & { readonly shape: readonly number[] }): Tensor {
  engine().backend.incRef(dataId);
  return engine().makeTensorFromTensorInfo({ dataId, shape: [...shape], dtype });
}
