import { runOp, type Op } from '../op.ts';
import { cast, isFinite, min, scalar, type Scalar, type Tensor } from '../tfjs.ts';

/** Input x. Output [scalar f32]: 1 where every entry is finite, else 0; 1 for an empty tensor. */
export const allFiniteOp: Op<{ x: Tensor }, object> = {
  kernelName: 'NiwakiAllFinite',
  reference: ({ x }) => [x.size === 0 ? scalar(1) : min(cast(isFinite(x), 'float32'))],
};

/**
 * Whether a tensor holds no NaN and no infinity, on the device and without reading back: scalar f32, 1 or 0.
 * On WebGPU the kernel looks at the bits, since WGSL lets a compiler assume that such numbers do not exist. Not differentiable.
 */
export function allFinite(x: Tensor): Scalar {
  if (x.dtype !== 'float32') return scalar(1);
  return runOp(allFiniteOp, { x }, {})[0] as Scalar;
}
