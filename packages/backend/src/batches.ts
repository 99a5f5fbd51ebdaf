import { ShapeError } from '@niwaki/tensor';

/** The batches of a broadcast product: the common shape, and for each of its batches which one of a and of b it multiplies. */
export interface Batches {
  readonly shape: readonly number[];
  readonly pairs: readonly (readonly [a: number, b: number])[];
}

/** Broadcasts the leading sides of two operands, numpy's way. */
export function broadcastBatches(a: readonly number[], b: readonly number[]): Batches {
  const rank = Math.max(a.length, b.length);
  const pad = (shape: readonly number[]): number[] => [...Array<number>(rank - shape.length).fill(1), ...shape];
  const [left, right] = [pad(a), pad(b)];
  const shape = left.map((side, axis) => {
    const other = right[axis]!;
    if (side !== other && side !== 1 && other !== 1) throw new ShapeError(`batches [${a}] and [${b}] do not broadcast`, { a, b });
    return side === 1 ? other : side;
  });
  let pairs: (readonly [number, number])[] = [[0, 0]];
  for (let axis = 0; axis < rank; axis++) {
    const [l, r] = [left[axis]!, right[axis]!];
    pairs = pairs.flatMap(([i, j]) =>
      Array.from({ length: shape[axis]! }, (_, k) => [i * l + (l === 1 ? 0 : k), j * r + (r === 1 ? 0 : k)] as const),
    );
  }
  return { shape, pairs };
}
