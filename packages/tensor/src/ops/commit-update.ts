import { add, mul, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';
import { choose } from './choose.ts';

export interface CommitFactors {
  /** What is kept of the old value. */
  readonly keep: number;
  /** Multiplies the update. */
  readonly scale: number;
}

/** Inputs old, update of one shape; ok a scalar, 0 or 1. Output [old · keep + update · scale where ok, else old bit for bit]. */
export const commitUpdateOp: Op<{ old: Tensor; update: Tensor; ok: Tensor }, CommitFactors> = {
  kernelName: 'NiwakiCommitUpdate',
  reference: ({ old, update, ok }, { keep, scale }) => [choose(ok as Scalar, add(times(old, keep), times(update, scale)), old)],
};

const times = (x: Tensor, factor: number): Tensor => (factor === 1 ? x : mul(x, factor));

/** A value after an update: shrunk to `keep` of itself, then moved; as it was where the step is refused. Not differentiable. */
export function commitUpdate(old: Tensor, update: Tensor, ok: Scalar, { keep = 1, scale = 1 }: Partial<CommitFactors> = {}): Tensor {
  return runOp(commitUpdateOp, { old, update, ok }, { keep, scale })[0]!;
}
