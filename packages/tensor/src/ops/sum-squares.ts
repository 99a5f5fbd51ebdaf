import { square, sum, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';

/** Input x f32. Output [scalar Σ x²]. */
export const sumSquaresOp: Op<{ x: Tensor }, object> = {
  kernelName: 'NiwakiSumSquares',
  reference: ({ x }) => [sum(square(x))],
};

/** The square of a tensor's L2 norm, on the device. Not differentiable. */
export const sumSquares = (x: Tensor): Scalar => runOp(sumSquaresOp, { x }, {})[0] as Scalar;
