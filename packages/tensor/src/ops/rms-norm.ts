import { mean, mul, square, rsqrt, add, sub, sum, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/** Inputs x [rows, width], weight [width]. Output [y]. */
export const rmsNormOp: Op<{ x: Tensor; weight: Tensor }, { eps: number }> = {
  kernelName: 'NiwakiRmsNorm',
  reference: ({ x, weight }, { eps }) => [mul(mul(x, reciprocalRms(x, eps)), weight)],
};

/** Inputs dy, x [rows, width], weight [width]. Outputs [dx] and, when `weightGradient`, dweight [width]. */
export const rmsNormGradOp: Op<{ dy: Tensor; x: Tensor; weight: Tensor }, { eps: number; weightGradient: boolean }> = {
  kernelName: 'NiwakiRmsNormGrad',
  reference: ({ dy, x, weight }, { eps, weightGradient }) => {
    const r = reciprocalRms(x, eps);
    const normalized = mul(x, r);
    const scaled = mul(dy, weight);
    // d/dx of x·r(x)·w: the second term is the change of the norm itself.
    const dx = mul(r, sub(scaled, mul(normalized, mean(mul(scaled, normalized), -1, true))));
    return weightGradient ? [dx, sum(mul(dy, normalized), 0)] : [dx];
  },
};

const reciprocalRms = (x: Tensor, eps: number): Tensor => rsqrt(add(mean(square(x), -1, true), eps));

/**
 * Root-mean-square normalization over the last axis: weight · x / sqrt(mean(x²) + eps) (Zhang & Sennrich 2019, eq. 4).
 * Saves x (and the weight, shared); the statistics are computed again in the backward pass.
 * @param x [rows, width] f32
 * @param weight [width] f32
 */
export function rmsNorm(
  x: Tensor2D,
  weight: Tensor1D,
  { eps, weightGradient = true }: { eps: number; weightGradient?: boolean },
): Tensor2D {
  return withGradient(
    weightGradient ? [x, weight] : [x],
    (save) => {
      // The weight too, though it is shared: read through a view it may be a tensor of this pass alone.
      save([x, weight]);
      return runOp(rmsNormOp, { x, weight }, { eps })[0]!;
    },
    (dy, [savedX, savedWeight]) => runOp(rmsNormGradOp, { dy, x: savedX!, weight: savedWeight! }, { eps, weightGradient }),
  ) as Tensor2D;
}
