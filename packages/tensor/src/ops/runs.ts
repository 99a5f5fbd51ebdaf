import { ShapeError } from '../errors.ts';
import { concat, slice, zeros, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';

/**
 * Runs of rows, one for each matrix of a stack: int32 [count + 1], ascending; rows [runs[e], runs[e + 1]) are those of
 * matrix e. Rows before the first run and after the last are in none.
 */
export type Runs = Tensor1D;

/** @throws ShapeError unless runs ascend within [0, rows]. For devices that can read them without waiting. */
export function checkRuns(runs: Int32Array, rows: number): void {
  for (let e = 0; e < runs.length; e++) {
    const [from, to] = [runs[e - 1] ?? 0, runs[e]!];
    if (to >= from && to <= rows) continue;
    throw new ShapeError(`runs must ascend within the ${rows} rows, got ${from} and then ${to} at ${e}`, { at: e, from, to, rows });
  }
}

/** @throws ShapeError where `runs` are not the ends of `count` runs */
export function expectRuns(runs: Tensor, count: number): void {
  if (runs.dtype === 'int32' && runs.rank === 1 && runs.size === count + 1) return;
  throw new ShapeError(`a stack of ${count} matrices takes runs int32 [${count + 1}], got ${runs.dtype} [${runs.shape}]`, {
    expected: [count + 1],
    given: runs.shape,
    dtype: runs.dtype,
  });
}

/** What `each` makes of the rows of every run that has some, beneath one another as x has them; zeros for rows in no run. */
export function overRuns(x: Tensor, runs: Tensor, width: number, each: (rows: Tensor2D, e: number) => Tensor): Tensor2D {
  const ends = runs.dataSync() as Int32Array;
  const rows = x.shape[0]!;
  checkRuns(ends, rows);
  const [first, last] = [ends[0]!, ends[ends.length - 1]!];
  const parts: Tensor[] = [zeros([first, width])];
  for (let e = 0; e + 1 < ends.length; e++) {
    const count = ends[e + 1]! - ends[e]!;
    if (count > 0) parts.push(each(slice(x as Tensor2D, [ends[e]!, 0], [count, x.shape[1]!]), e));
  }
  parts.push(zeros([rows - last, width]));
  return concat(parts) as Tensor2D;
}
