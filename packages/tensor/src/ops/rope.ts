import { add, concat, mul, neg, reshape, slice, type Tensor, type Tensor2D, type Tensor3D } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/**
 * Inputs x [rows, heads, d], cos and sin [rows, d / 2]. Output [x rotated]; `inverse` rotates back (the gradient).
 * Halves are split, not interleaved: entry i pairs with entry i + d/2.
 */
export const ropeOp: Op<{ x: Tensor; cos: Tensor; sin: Tensor }, { inverse: boolean }> = {
  kernelName: 'NiwakiRope',
  reference: ({ x, cos, sin }, { inverse }) => {
    const [rows, heads, d] = x.shape as [number, number, number];
    const c = reshape(cos, [rows, 1, d / 2]);
    const s = inverse ? neg(reshape(sin, [rows, 1, d / 2])) : reshape(sin, [rows, 1, d / 2]);
    const first = slice(x, [0, 0, 0], [rows, heads, d / 2]);
    const second = slice(x, [0, 0, d / 2], [rows, heads, d / 2]);
    return [concat([add(mul(first, c), neg(mul(second, s))), add(mul(second, c), mul(first, s))], 2)];
  },
};

/**
 * Rotary position embedding. The backward pass is the inverse rotation and saves nothing but the shared tables.
 * @param x [rows, heads, d] f32, rows = batch · time
 * @param cos [rows, d / 2] f32, cosines of each row's angles (times the attention scaling where the scaling has one)
 * @param sin [rows, d / 2] f32
 */
export function rope(x: Tensor3D, cos: Tensor2D, sin: Tensor2D): Tensor3D {
  return withGradient(
    [x],
    (save) => {
      // Shared by all layers, so that this holds no copies: they may be tensors of this pass alone.
      save([cos, sin]);
      return runOp(ropeOp, { x, cos, sin }, { inverse: false })[0]!;
    },
    // The transpose of (scaling · rotation) is (scaling · inverse rotation): the tables carry the scaling both ways.
    (dy, [c, s]) => runOp(ropeOp, { x: dy, cos: c!, sin: s! }, { inverse: true }),
  ) as Tensor3D;
}
