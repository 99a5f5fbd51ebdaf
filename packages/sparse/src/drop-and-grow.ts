import { cut } from './keep-entries.ts';

/** Which slots of a list of entries are given new places: slot by slot. */
export interface Exchange {
  readonly slots: Int32Array;
  /** Of each slot: which of the candidates it takes. */
  readonly grown: Int32Array;
}

/** Places that are looked at, and how much each promises. */
export interface Candidates {
  readonly places: Int32Array;
  readonly scores: Float32Array;
}

/**
 * Drops the `count` entries that changed least and grows as many of the best free candidates. An entry that would be both
 * stays as it is, and what finds no candidate stays too.
 * @param active place of each slot
 * @param change |value| of each slot
 */
export function exchange(active: Int32Array, change: Float32Array, { places, scores }: Candidates, count: number): Exchange {
  const dropped = leastOf(change, count);
  const leaving = new Map(Array.from(dropped, (slot) => [active[slot]!, slot]));
  const remaining = new Set(active.filter((place) => !leaving.has(place)));
  const best = Array.from(places.keys())
    .filter((i) => !remaining.has(places[i]!))
    .sort((a, b) => scores[b]! - scores[a]! || places[a]! - places[b]!)
    .slice(0, count);
  const grown = Int32Array.from(best.filter((i) => !leaving.has(places[i]!)));
  const kept = new Set(best.map((i) => leaving.get(places[i]!)));
  return { slots: dropped.filter((slot) => !kept.has(slot)).slice(0, grown.length), grown };
}

/** Indices of the `count` least, from the least on; of equal ones the first. */
export function leastOf(scores: Float32Array, count: number): Int32Array {
  const found = new Int32Array(count);
  if (count === 0) return found;
  const { threshold, ties } = cut(scores.slice().sort(), count);
  let [at, left] = [0, ties];
  for (const [i, score] of scores.entries()) {
    if (score > threshold || (score === threshold && left-- <= 0)) continue;
    found[at++] = i;
  }
  return found.sort((a, b) => scores[a]! - scores[b]! || a - b);
}

/**
 * The `count` largest products of a row's number and a column's, above 0 and at places that are not taken, from the largest
 * on; of equal ones the first. Walks each row along the sorted columns, with the rows in a heap: the matrix of products is
 * never formed. Time (count + taken) · log(rows); memory 12 bytes a row and a column.
 * @returns flat places, row after row; fewer where no more products are above 0
 */
export function largestProducts(row: Float32Array, column: Float32Array, taken: ReadonlySet<number>, count: number): Int32Array {
  const width = column.length;
  const columns = Int32Array.from(column.keys())
    .filter((j) => column[j]! > 0)
    .sort((a, b) => column[b]! - column[a]! || a - b);
  const heap = Int32Array.from(row.keys()).filter((i) => row[i]! > 0);
  const next = new Int32Array(row.length);
  const product = (i: number): number => row[i]! * column[columns[next[i]!]!]!;
  const placeOf = (i: number): number => i * width + columns[next[i]!]!;
  const before = (a: number, b: number): boolean => {
    const difference = product(a) - product(b);
    return difference > 0 || (difference === 0 && placeOf(a) < placeOf(b));
  };
  let size = columns.length === 0 ? 0 : heap.length;
  const sink = (from: number): void => {
    for (let at = from; ;) {
      let first = at;
      for (const child of [2 * at + 1, 2 * at + 2]) if (child < size && before(heap[child]!, heap[first]!)) first = child;
      if (first === at) return;
      [heap[at], heap[first]] = [heap[first]!, heap[at]!];
      at = first;
    }
  };
  for (let at = Math.floor(size / 2) - 1; at >= 0; at--) sink(at);
  const found: number[] = [];
  while (size > 0 && found.length < count) {
    const [top] = heap as unknown as [number];
    const place = placeOf(top);
    if (!taken.has(place)) found.push(place);
    if (++next[top]! === columns.length) heap[0] = heap[--size]!;
    sink(0);
  }
  return Int32Array.from(found);
}
