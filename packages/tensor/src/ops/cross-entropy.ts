import {
  add,
  cast,
  exp,
  expandDims,
  greaterEqual,
  log,
  max,
  maximum,
  mul,
  oneHot,
  squeeze,
  sub,
  sum,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '../tfjs.ts';
import { heldOnce, runOp, withGradient, type Op } from '../op.ts';

/** Inputs logits [rows, vocabulary] f32, targets [rows] int32 (negative: ignored). Outputs [loss [rows], logSumExp [rows]]. */
export const crossEntropyOp: Op<{ logits: Tensor; targets: Tensor }, object> = {
  kernelName: 'NiwakiCrossEntropy',
  reference: ({ logits, targets }) => {
    const peak = max(logits, -1, true);
    const logSumExp = squeeze(add(peak, log(sum(exp(sub(logits, peak)), -1, true))), [1]);
    const counted = cast(greaterEqual(targets, 0), 'float32');
    const picked = sum(mul(logits, oneHotOf(targets, logits.shape[1]!)), -1);
    return [mul(sub(logSumExp, picked), counted), logSumExp];
  },
};

/**
 * Inputs dloss [rows], logits, targets, logSumExp. Output [dlogits] = dloss · (softmax - one-hot), 0 for ignored rows.
 * `overwrite`: nobody reads the logits again, so that a kernel may put dlogits into their memory.
 */
export const crossEntropyGradOp: Op<{ dloss: Tensor; logits: Tensor; targets: Tensor; logSumExp: Tensor }, { overwrite: boolean }> = {
  kernelName: 'NiwakiCrossEntropyGrad',
  reference: ({ dloss, logits, targets, logSumExp }) => {
    const probabilities = exp(sub(logits, expandDims(logSumExp, 1)));
    const scale = mul(dloss, cast(greaterEqual(targets, 0), 'float32'));
    return [mul(sub(probabilities, oneHotOf(targets, logits.shape[1]!)), expandDims(scale, 1))];
  },
};

const oneHotOf = (targets: Tensor, depth: number): Tensor => oneHot(cast(maximum(targets, 0), 'int32') as Tensor1D, depth, 1, 0, 'float32');

/**
 * Cross-entropy of each row against its target id, in nats; a negative target gives 0 and no gradient. The logits are kept
 * for the gradient, which takes their place where nothing else holds them by then: one matrix, not two.
 * @param logits [rows, vocabulary] f32 @param targets [rows] int32
 */
export function crossEntropy(logits: Tensor2D, targets: Tensor1D): Tensor1D {
  return withGradient(
    [logits],
    (save) => {
      const [loss, logSumExp] = runOp(crossEntropyOp, { logits, targets }, {});
      save([logits, logSumExp!, targets]);
      return loss!;
    },
    (dloss, [l, logSumExp, t]) =>
      runOp(crossEntropyGradOp, { dloss, logits: l!, targets: t!, logSumExp: logSumExp! }, { overwrite: heldOnce(l!) }),
  ) as Tensor1D;
}
