import { isNOfM, type Amount } from './amount.ts';

export type Scores = Float32Array | Float64Array;

/** Clears the flags of the `count` entries of [from, to) that score least; of equal ones the first. */
export function clearSmallest(scores: Scores, kept: Uint8Array, { from, to, count }: { from: number; to: number; count: number }): void {
  if (count <= 0) return;
  const { threshold, ties } = cut(scores.slice(from, to).sort(), count);
  clearBelow(scores, kept, { from, to, threshold, ties });
}

/** What separates the `count` least of sorted scores from the rest: all below the threshold, and some of those equal to it. */
export function cut(sorted: Scores, count: number): { readonly threshold: number; readonly ties: number } {
  const threshold = sorted[count - 1]!;
  let below = count - 1;
  while (below > 0 && sorted[below - 1] === threshold) below--;
  return { threshold, ties: count - below };
}

/** @returns how many of the ties are left for entries to come */
export function clearBelow(
  scores: Scores,
  kept: Uint8Array,
  { from, to, threshold, ties }: { from: number; to: number; threshold: number; ties: number },
): number {
  let left = ties;
  for (let e = from; e < to; e++) {
    if (scores[e]! < threshold) kept[e] = 0;
    else if (scores[e] === threshold && left > 0) {
      kept[e] = 0;
      left--;
    }
  }
  return left;
}

/** One flag an entry: in each row, or each group of m, what scores least goes. */
export function keepByRows(scores: Scores, [out, width]: readonly [number, number], amount: Amount): Uint8Array {
  const kept = new Uint8Array(out * width).fill(1);
  const [size, count] = isNOfM(amount) ? [amount.m, amount.m - amount.n] : [width, Math.floor(width * amount.sparsity)];
  for (let from = 0; from < out * width; from += size) clearSmallest(scores, kept, { from, to: from + size, count });
  return kept;
}
