import { add, mul, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';
import { choose } from './choose.ts';

/** Inputs old, update of one shape; ok a scalar, 0 or 1. Output [old · keep + update where ok, else old bit for bit]. */
export const commitUpdateOp: Op<{ old: Tensor; update: Tensor; ok: Tensor }, { keep: number }> = {
  kernelName: 'NiwakiCommitUpdate',
  reference: ({ old, update, ok }, { keep }) => [choose(ok as Scalar, add(keep === 1 ? old : mul(old, keep), update), old)],
};

/** A value after an update: shrunk to `keep` of itself, then moved; as it was where the step is refused. Not differentiable. */
export function commitUpdate(old: Tensor, update: Tensor, ok: Scalar, keep = 1): Tensor {
  return runOp(commitUpdateOp, { old, update, ok }, { keep })[0]!;
}
