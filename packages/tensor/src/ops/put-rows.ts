import { heldOnce, runOp, type Op } from '../op.ts';
import { ShapeError } from '../errors.ts';
import { concat, slice, type Tensor, type Tensor1D } from '../tfjs.ts';

/**
 * Inputs target [batch, length, …], rows [batch, count, …], both f32, and at int32 [1]. Output [target with the rows from
 * `lead` + at on in the place of its own]; the target as it was where they do not all fit. `overwrite`: nobody reads the target
 * again, so that a kernel may put the rows into its memory.
 */
export const putRowsOp: Op<{ target: Tensor; rows: Tensor; at: Tensor }, { lead: number; overwrite: boolean }> = {
  kernelName: 'NiwakiPutRows',
  reference: ({ target, rows, at }, { lead }) => {
    const first = lead + (at.dataSync() as Int32Array)[0]!;
    const [behind, length] = [first + rows.shape[1]!, target.shape[1]!];
    if (first < 0 || behind > length) return [target.clone()];
    const part = (from: number, to: number): Tensor[] => (from === to ? [] : [slice(target, [0, from], [-1, to - from])]);
    return [concat([...part(0, first), rows, ...part(behind, length)], 1)];
  },
};

/**
 * A tensor with some of its rows replaced. Which ones is a number on the device, so that a recording of this puts rows where it
 * says at each replay. Not differentiable.
 * @param target [batch, length, …] f32
 * @param rows [batch, count, …] f32
 * @param at int32 [1], the first row to replace, counted from `lead` on; rows that do not fit leave the target as it was
 * @param options `lead`: default 0. `owned`: whether the target may be written over, so that on wasm and WebGPU the result takes
 * its memory where nothing else holds it, and only `rows` are read; default false, with memory for another target
 * @throws ShapeError where the rows are not like the target's, or more of them
 */
export function putRows<T extends Tensor>(
  target: T,
  rows: T,
  at: Tensor1D,
  { lead = 0, owned = false }: { readonly lead?: number; readonly owned?: boolean } = {},
): T {
  const [[batch, length, ...sides], [asMany, count, ...same]] = [target.shape, rows.shape];
  const fits = batch === asMany && sides.join() === same.join() && lead + count! <= length!;
  if (!fits || at.size !== 1 || at.dtype !== 'int32') {
    throw new ShapeError(
      `putRows: rows of shape [${rows.shape}] do not fit into [${target.shape}] behind ${lead} at an ${at.dtype} [${at.shape}]`,
      {
        target: target.shape,
        rows: rows.shape,
        lead,
        at: at.shape,
      },
    );
  }
  return runOp(putRowsOp, { target, rows, at }, { lead, overwrite: owned && heldOnce(target) })[0] as T;
}
