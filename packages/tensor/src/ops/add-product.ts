import { add, matMul, type Tensor, type Tensor2D } from '../tfjs.ts';
import { heldOnce, runOp, type Op } from '../op.ts';

/**
 * Inputs sum [rows, columns], a [terms, rows], b [terms, columns]. Output [sum + aᵀ·b].
 * `overwrite`: nobody reads the sum before this again, so that a kernel may put the new one into its memory.
 */
export const addProductOp: Op<{ sum: Tensor; a: Tensor; b: Tensor }, { overwrite: boolean }> = {
  kernelName: 'NiwakiAddProduct',
  reference: ({ sum, a, b }) => [add(sum, matMul(a as Tensor2D, b as Tensor2D, true, false))],
};

/**
 * sum + aᵀ·b: a matrix's gradient with the part of some more rows, a their cotangents [rows, out], b their inputs
 * [rows, in]. Takes `sum` over; where nothing else holds it and the device has a kernel, no second matrix is made. Not
 * differentiable.
 */
export function addProduct(sum: Tensor, a: Tensor, b: Tensor): Tensor2D {
  try {
    return runOp(addProductOp, { sum, a, b }, { overwrite: heldOnce(sum) })[0] as Tensor2D;
  } finally {
    sum.dispose();
  }
}
