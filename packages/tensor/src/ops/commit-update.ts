import { add, mul, type Scalar, type Tensor } from '../tfjs.ts';
import { heldOnce, runOp, type Op } from '../op.ts';
import { choose } from './choose.ts';

export interface CommitFactors {
  /** What is kept of the old value. */
  readonly keep: number;
  /** Multiplies the update. */
  readonly scale: number;
}

/**
 * Inputs old, update of one shape; ok a scalar, 0 or 1. Output [old · keep + update · scale where ok, else old bit for bit].
 * `overwrite`: nobody reads the update again, so that a kernel may put the result into its memory.
 */
export const commitUpdateOp: Op<{ old: Tensor; update: Tensor; ok: Tensor }, CommitFactors & { overwrite: boolean }> = {
  kernelName: 'NiwakiCommitUpdate',
  reference: ({ old, update, ok }, { keep, scale }) => [choose(ok as Scalar, add(times(old, keep), times(update, scale)), old)],
};

const times = (x: Tensor, factor: number): Tensor => (factor === 1 ? x : mul(x, factor));

/**
 * A value after an update: shrunk to `keep` of itself, then moved; as it was where the step is refused. Not differentiable.
 * @param options `owned`: whether the update may be written over, so that on wasm and WebGPU the result takes its memory where
 * nothing else holds it; default false
 */
export function commitUpdate(
  old: Tensor,
  update: Tensor,
  ok: Scalar,
  { keep = 1, scale = 1, owned = false }: Partial<CommitFactors> & { readonly owned?: boolean } = {},
): Tensor {
  const overwrite = owned && update !== old && heldOnce(update);
  return runOp(commitUpdateOp, { old, update, ok }, { keep, scale, overwrite })[0]!;
}
