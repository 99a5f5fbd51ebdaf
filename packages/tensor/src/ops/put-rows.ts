import { heldOnce, runOp, type Op } from '../op.ts';
import { ShapeError } from '../errors.ts';
import { concat, slice, type Tensor } from '../tfjs.ts';

/**
 * Inputs target [batch, length, …], rows [batch, count, …], both f32. Output [target with the rows from `at` on in the place
 * of its own]. `overwrite`: nobody reads the target again, so that a kernel may put the rows into its memory.
 */
export const putRowsOp: Op<{ target: Tensor; rows: Tensor }, { at: number; overwrite: boolean }> = {
  kernelName: 'NiwakiPutRows',
  reference: ({ target, rows }, { at }) => {
    const [behind, length] = [at + rows.shape[1]!, target.shape[1]!];
    const part = (from: number, to: number): Tensor[] => (from === to ? [] : [slice(target, [0, from], [-1, to - from])]);
    return [concat([...part(0, at), rows, ...part(behind, length)], 1)];
  },
};

/**
 * A tensor with some of its rows replaced. Not differentiable.
 * @param target [batch, length, …] f32
 * @param rows [batch, count, …] f32
 * @param at the first row to replace; at + count is at most length
 * @param options `owned`: whether the target may be written over, so that on wasm and WebGPU the result takes its memory where
 * nothing else holds it, and only `rows` are read; default false, with memory for another target
 * @throws ShapeError where the rows do not fit
 */
export function putRows<T extends Tensor>(target: T, rows: T, at: number, { owned = false }: { readonly owned?: boolean } = {}): T {
  const [[batch, length, ...sides], [asMany, count, ...same]] = [target.shape, rows.shape];
  const fits = batch === asMany && sides.join() === same.join() && Number.isInteger(at) && at >= 0 && at + count! <= length!;
  if (!fits) {
    throw new ShapeError(`putRows: rows of shape [${rows.shape}] do not fit into [${target.shape}] at ${at}`, {
      target: target.shape,
      rows: rows.shape,
      at,
    });
  }
  return runOp(putRowsOp, { target, rows }, { at, overwrite: owned && heldOnce(target) })[0] as T;
}
