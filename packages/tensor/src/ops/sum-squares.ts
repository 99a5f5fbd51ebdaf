import { addN, square, sum, tidy, zeros, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';

/** Inputs f32 tensors, of any names and shapes. Output [scalar Σ x² over all of them]. */
export const sumSquaresOp: Op<{ [name: string]: Tensor }, object> = {
  kernelName: 'NiwakiSumSquares',
  reference: (inputs) => {
    // A tidy each: the squares of all together would be a second copy of them.
    const parts = Object.values(inputs).map((x) => tidy(() => sum(square(x))));
    return [parts.length === 0 ? zeros([]) : addN(parts)];
  },
};

/** The square of the L2 norm of tensors together, on the device. Not differentiable. */
export const sumSquares = (tensors: readonly Tensor[]): Scalar =>
  runOp(sumSquaresOp, Object.fromEntries(tensors.map((x, i) => [`x${i}`, x])), {})[0] as Scalar;
