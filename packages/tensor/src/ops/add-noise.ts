import { noiseAttributes, noiseOp, type Distribution, type Noise, type NoiseAttributes } from '../noise.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { add, mul, reshape, scalar, tidy, type Scalar, type Tensor } from '../tfjs.ts';

/** Inputs x f32 with `length` entries, factor a scalar. Output [x + factor · the noise of the address], of x's shape. */
export const addNoiseOp: Op<{ x: Tensor; factor: Tensor }, NoiseAttributes> = {
  kernelName: 'NiwakiAddNoise',
  reference: ({ x, factor }, attributes) => [add(x, mul(reshape(runOp(noiseOp, {}, attributes)[0]!, x.shape), factor))],
};

/**
 * x + factor · noise, the noise indexed row-major as `noise` gives it: one pass over x, and no tensor of noise where the
 * device has a kernel. A perturbation, its opposite and the update along it are this one op, so that they round alike.
 * The gradient of x passes; the factor has none.
 * @param factor a number, or a scalar on the device
 */
export function addNoise<T extends Tensor>(x: T, address: Noise, distribution: Distribution, factor: number | Scalar): T {
  const attributes = noiseAttributes(x.shape, address, distribution);
  return withGradient(
    [x],
    () => tidy(() => runOp(addNoiseOp, { x, factor: typeof factor === 'number' ? scalar(factor) : factor }, attributes)[0]!),
    (dy) => [dy],
  ) as T;
}
