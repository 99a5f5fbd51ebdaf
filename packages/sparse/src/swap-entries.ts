/** One row of a matrix, and what is known of its inputs. */
export interface SwapRow {
  /** What each entry adds to the expected output, w · Σ x. */
  readonly contributions: Float64Array;
  /** Contribution over a power of the input's variance: which pruned entries to bring back first. */
  readonly growth: Float64Array;
  /** |w| · ‖x‖: which kept entries to give up first. */
  readonly importance: ArrayLike<number>;
  /** By which the row was pruned; decides within groups. */
  readonly scores: ArrayLike<number>;
  /** Changed in place. */
  readonly kept: Uint8Array;
}

export interface SwapOptions {
  /** Most swaps of a row. */
  readonly cycles: number;
  /** Stop when the expected error is at most this. */
  readonly threshold: number;
  /** Stop before the error changes its sign. */
  readonly sameSign: boolean;
  /** Swap within groups of so many entries only. */
  readonly group?: number;
}

/**
 * DSnoT's swaps of one row: brings the pruned entry back that takes most off the expected error, gives up the kept one
 * that matters least and pulls the same way, until the error is small. An entry moves at most once.
 * @returns the expected error after, and before
 */
export function swapEntries(
  row: SwapRow,
  { cycles, threshold, sameSign, group }: SwapOptions,
): { readonly before: number; readonly after: number } {
  const { contributions, growth, importance, scores, kept } = row;
  const entries = Array.from(kept, (_, i) => i);
  const pruned = entries.filter((i) => kept[i] === 0).sort((a, b) => growth[a]! - growth[b]! || a - b);
  const held = entries.filter((i) => kept[i] === 1).sort((a, b) => importance[a]! - importance[b]! || a - b);
  const lowest = pruned.filter((i) => growth[i]! < 0);
  // Read from its end.
  const highest = pruned.filter((i) => growth[i]! > 0);
  const negative = held.filter((i) => contributions[i]! < 0);
  const positive = held.filter((i) => contributions[i]! > 0);
  const first = new Set(held);

  const before = pruned.reduce((sum, i) => sum + contributions[i]!, 0);
  let error = before;
  const next = { lowest: 0, highest: highest.length - 1, negative: 0, positive: 0 };
  for (let cycle = 0; cycle < cycles && Math.abs(error) > threshold; cycle++) {
    const grown = error > 0 ? highest[next.highest--] : lowest[next.lowest++];
    if (grown === undefined) break;
    const given =
      group === undefined
        ? error < 0
          ? positive[next.positive++]
          : negative[next.negative++]
        : leastOf(
            groupOf(grown, group).filter((i) => kept[i] === 1 && first.has(i)),
            scores,
          );
    if (given === undefined) break;
    const after = error + contributions[given]! - contributions[grown]!;
    if (sameSign && Math.sign(after) !== Math.sign(before)) break;
    kept[grown] = 1;
    kept[given] = 0;
    error = after;
  }
  return { before, after: error };
}

const groupOf = (entry: number, size: number): number[] => {
  const from = Math.floor(entry / size) * size;
  return Array.from({ length: size }, (_, i) => from + i);
};

function leastOf(entries: readonly number[], scores: ArrayLike<number>): number | undefined {
  return entries.reduce<number | undefined>((least, i) => (least === undefined || scores[i]! < scores[least]! ? i : least), undefined);
}
