import {
  add,
  cast,
  clipByValue,
  concat,
  div,
  floor,
  gather,
  greaterEqual,
  less,
  logicalAnd,
  mul,
  reshape,
  slice,
  stack,
  sub,
  tidy,
  topk,
  where,
  zerosLike,
  type Range,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';

/** Entries of a matrix that are addressed at once: f32 counts them exactly, and WebGPU's tfjs has no other arithmetic. */
export const addressed: number = 2 ** 24;

/**
 * What a matrix that is given by rows holds at some places: f32 [entries].
 * @param places int32 [entries, 2]: row and column
 */
export function entriesOf(rowsOf: (rows?: Range) => Tensor, places: Tensor2D, [out, width]: readonly [number, number]): Tensor1D {
  const step = Math.min(out, Math.max(1, Math.floor(addressed / width)));
  return tidy(() => {
    const side = (s: number): Tensor => cast(reshape(slice(places, [0, s], [-1, 1]), [-1]), 'float32');
    const [row, column] = [side(0), side(1)];
    let found: Tensor | undefined;
    for (let from = 0; from < out; from += step) {
      const to = Math.min(out, from + step);
      const before = found;
      found = tidy(() => {
        const rows = reshape(rowsOf([from, to]), [(to - from) * width]);
        const flat = add(mul(sub(row, from), width), column);
        const own = gather(rows, cast(clipByValue(flat, 0, rows.size - 1), 'int32'));
        if (before === undefined && to === out) return own;
        return where(logicalAnd(greaterEqual(row, from), less(row, to)), own, before ?? zerosLike(own));
      });
    }
    return found as Tensor1D;
  });
}

/** The largest entries of a matrix, from the largest on; of equal ones the first come first. */
export type Largest = {
  /** Row and column, int32 [count, 2]. */
  readonly places: Tensor2D;
  /** f32 [count] */
  readonly scores: Tensor1D;
};

/** A device sorts a stretch in some two hundred launches, however long it is. */
const stretchEntries = 2 ** 18;

/**
 * The `count` largest of a matrix of scores that is never whole: it is taken a stretch of rows at a time, each sorted in
 * with the largest so far. On the device throughout. Memory: a few numbers for each entry of a stretch (262,144, or `count`).
 */
export function largestOf(rowsOf: (rows: Range) => Tensor, count: number, [out, width]: readonly [number, number]): Largest {
  const entries = Math.min(Math.max(count, stretchEntries), 2 ** 22);
  const step = Math.min(out, Math.max(1, Math.floor(entries / width)));
  let best: Largest | undefined;
  for (let from = 0; from < out; from += step) {
    const to = Math.min(out, from + step);
    const before = best;
    best = tidy(() => sortedIn(before, reshape(rowsOf([from, to]), [(to - from) * width]) as Tensor1D, { count, from, width }));
    before?.places.dispose();
    before?.scores.dispose();
  }
  return best!;
}

function sortedIn(
  before: Largest | undefined,
  scores: Tensor1D,
  { count, from, width }: { readonly count: number; readonly from: number; readonly width: number },
): Largest {
  const held = before?.scores.size ?? 0;
  const all = before === undefined ? scores : concat([before.scores, scores]);
  const { values, indices } = topk(all, Math.min(count, all.size));
  const at = cast(indices, 'float32');
  const own = placesAt(clipByValue(sub(at, held), 0, scores.size - 1), { from, width });
  if (before === undefined) return { places: own, scores: values as Tensor1D };
  const old = gather(before.places, cast(clipByValue(at, 0, held - 1), 'int32'));
  return { places: where(reshape(greaterEqual(at, held), [-1, 1]), own, old) as Tensor2D, scores: values as Tensor1D };
}

/** Row and column of flat numbers that f32 holds exactly. */
function placesAt(flat: Tensor, { from, width }: { readonly from: number; readonly width: number }): Tensor2D {
  // A device may round the quotient the wrong way.
  const guess = floor(div(flat, width));
  const rest = sub(flat, mul(guess, width));
  const row = sub(add(guess, cast(greaterEqual(rest, width), 'float32')), cast(less(rest, 0), 'float32'));
  const column = sub(flat, mul(row, width));
  return cast(stack([add(row, from), column], 1), 'int32') as Tensor2D;
}
