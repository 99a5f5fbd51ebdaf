import { add, mean, mul, rsqrt, square, sub, sum, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/** Inputs x [rows, width], weight [width], bias [width]. Output [y]. */
export const layerNormOp: Op<{ x: Tensor; weight: Tensor; bias: Tensor }, { eps: number }> = {
  kernelName: 'NiwakiLayerNorm',
  reference: ({ x, weight, bias }, { eps }) => [add(mul(normalize(x, eps).normalized, weight), bias)],
};

/** Inputs dy, x [rows, width], weight [width]. Outputs [dx] and, when `weightGradient`, dweight and dbias [width]. */
export const layerNormGradOp: Op<{ dy: Tensor; x: Tensor; weight: Tensor }, { eps: number; weightGradient: boolean }> = {
  kernelName: 'NiwakiLayerNormGrad',
  reference: ({ dy, x, weight }, { eps, weightGradient }) => {
    const { normalized, reciprocal } = normalize(x, eps);
    const scaled = mul(dy, weight);
    // A change of x moves its mean and its deviation too: their shares are taken out.
    const along = mul(normalized, mean(mul(scaled, normalized), -1, true));
    const dx = mul(reciprocal, sub(sub(scaled, mean(scaled, -1, true)), along));
    return weightGradient ? [dx, sum(mul(dy, normalized), 0), sum(dy, 0)] : [dx];
  },
};

function normalize(x: Tensor, eps: number): { normalized: Tensor; reciprocal: Tensor } {
  const centered = sub(x, mean(x, -1, true));
  const reciprocal = rsqrt(add(mean(square(centered), -1, true), eps));
  return { normalized: mul(centered, reciprocal), reciprocal };
}

/**
 * Layer normalization over the last axis: weight · (x - mean) / sqrt(variance + eps) + bias, the variance over all entries
 * (Ba, Kiros & Hinton 2016, eq. 4). Saves x (and weight and bias, shared); the statistics are computed again in the backward
 * pass.
 * @param x [rows, width] f32
 * @param weight [width] f32
 * @param bias [width] f32
 */
export function layerNorm(
  x: Tensor2D,
  weight: Tensor1D,
  bias: Tensor1D,
  { eps, weightGradient = true }: { eps: number; weightGradient?: boolean },
): Tensor2D {
  const valueOf = (of: Tensor, w: Tensor, b: Tensor): Tensor => runOp(layerNormOp, { x: of, weight: w, bias: b }, { eps })[0]!;
  return withGradient(
    weightGradient ? [x, weight, bias] : [x],
    (save) => {
      save([x, weight, bias]);
      return valueOf(x, weight, bias);
    },
    (dy, [savedX, savedWeight]) => runOp(layerNormGradOp, { dy, x: savedX!, weight: savedWeight! }, { eps, weightGradient }),
    { remake: ([savedX, savedWeight, savedBias]) => valueOf(savedX!, savedWeight!, savedBias!) },
  ) as Tensor2D;
}
