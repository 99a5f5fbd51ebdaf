import { reshape, sum, type Tensor } from '@tensorflow/tfjs-core';

/** Sums a gradient over the axes along which an operand of `shape` was repeated. */
export function unbroadcast(dy: Tensor, shape: readonly number[]): Tensor {
  const missing = dy.rank - shape.length;
  const axes = dy.shape.flatMap((side, axis) => (axis < missing || (shape[axis - missing] === 1 && side !== 1) ? [axis] : []));
  return axes.length === 0 ? reshape(dy, [...shape]) : reshape(sum(dy, axes), [...shape]);
}
