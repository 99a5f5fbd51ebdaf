import { ShapeError } from '../errors.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { matMul, reshape, slice, stack, zeros, type Tensor, type Tensor2D, type Tensor3D } from '../tfjs.ts';
import { checkRuns, expectRuns, overRuns, type Runs } from './runs.ts';
import { unwritten } from './unwritten.ts';

/**
 * Inputs x, w [count, out, in] and runs. Output [x·w[e]ᵀ for the rows of every run e, x [rows, in]], or with `transposed`
 * [x·w[e] for x [rows, out]] (the gradient). Rows in no run give zeros.
 */
export const groupedMatMulOp: Op<{ x: Tensor; w: Tensor; runs: Tensor }, { transposed: boolean }> = {
  kernelName: 'NiwakiGroupedMatMul',
  reference: ({ x, w, runs }, { transposed }) => {
    const [, out, width] = w.shape as [number, number, number];
    const matrix = (e: number): Tensor2D => reshape(slice(w as Tensor3D, [e, 0, 0], [1, out, width]), [out, width]);
    return [overRuns(x, runs, transposed ? width : out, (rows, e) => matMul(rows, matrix(e), false, !transposed))];
  },
};

/** Inputs dy [rows, out], x [rows, in] and runs. Output [dw [count, out, in]]: dyᵀ·x over the rows of each run, zeros where it has none. */
export const groupedMatMulGradOp: Op<{ dy: Tensor; x: Tensor; runs: Tensor }, Record<string, never>> = {
  kernelName: 'NiwakiGroupedMatMulGrad',
  reference: ({ dy, x, runs }) => {
    const ends = runs.dataSync() as Int32Array;
    checkRuns(ends, x.shape[0]!);
    const rowsOf = (of: Tensor, e: number): Tensor2D => slice(of as Tensor2D, [ends[e]!, 0], [ends[e + 1]! - ends[e]!, of.shape[1]!]);
    const each = Array.from({ length: ends.length - 1 }, (_, e) =>
      ends[e + 1] === ends[e] ? zeros([dy.shape[1]!, x.shape[1]!]) : matMul(rowsOf(dy, e), rowsOf(x, e), true, false),
    );
    return [stack(each)];
  },
};

export interface GroupedOptions {
  /** Only the gradient is asked for, and the result is `unwritten`. */
  readonly unread?: boolean | undefined;
}

/**
 * x·Wᵀ with a matrix of its own for each run of rows: what the experts of a layer do with the tokens that were sent to them,
 * in one launch and without reading back how many these are (MegaBlocks, Gale et al. 2022). Differentiable in x and, unless
 * `frozen`, in w, whose matrices without rows get zeros. Backward keeps w and the runs; x only where w is not frozen.
 * @param x [rows, in], rows in the order of their matrices
 * @param w [count, out, in]
 * @param runs int32 [count + 1]: rows [runs[e], runs[e + 1]) meet w[e], rows outside of them give zeros. They must ascend;
 * cpu and wasm check it, WebGPU cannot
 * @returns [rows, out]
 */
export function groupedMatMul(
  x: Tensor2D,
  w: Tensor3D,
  runs: Runs,
  { frozen = false, unread = false }: GroupedOptions & { readonly frozen?: boolean } = {},
): Tensor2D {
  const [count, out, width] = w.shape;
  expectRuns(runs, count);
  expectWidth(x, [out, width]);
  const forward = (): Tensor => (unread ? unwritten(x.shape[0], out) : runOp(groupedMatMulOp, { x, w, runs }, { transposed: false })[0]!);
  const back = (dy: Tensor, stored: Tensor, ends: Tensor): Tensor =>
    runOp(groupedMatMulOp, { x: dy, w: stored, runs: ends }, { transposed: true })[0]!;
  if (frozen) {
    return withGradient(
      [x],
      (save) => {
        save([w, runs]);
        return forward();
      },
      (dy, [stored, ends]) => [back(dy, stored!, ends!)],
    ) as Tensor2D;
  }
  return withGradient(
    [x, w],
    (save) => {
      save([x, w, runs]);
      return forward();
    },
    (dy, [given, stored, ends]) => [back(dy, stored!, ends!), runOp(groupedMatMulGradOp, { dy, x: given!, runs: ends! }, {})[0]!],
  ) as Tensor2D;
}

/** @throws ShapeError where x does not fit matrices of [out, in] */
export function expectWidth(x: Tensor2D, [out, width]: readonly [number, number]): void {
  if (x.rank === 2 && x.shape[1] === width) return;
  throw new ShapeError(`matrices of [${out}, ${width}] take rows of ${width}, got x of [${x.shape}]`, {
    expected: width,
    given: x.shape,
  });
}
