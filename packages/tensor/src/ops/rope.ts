import { add, concat, mul, neg, reshape, slice, type Tensor, type Tensor2D, type Tensor3D } from '../tfjs.ts';
import { runOp, withGradients, type Op } from '../op.ts';

/**
 * Inputs q [rows, heads, d], k [rows, kvHeads, d], cos and sin [rows, d / 2]. Outputs [q rotated, k rotated]; `inverse`
 * rotates back (the gradient). Halves are split, not interleaved: entry i pairs with entry i + d/2.
 */
export const ropeOp: Op<{ q: Tensor; k: Tensor; cos: Tensor; sin: Tensor }, { inverse: boolean }> = {
  kernelName: 'NiwakiRope',
  reference: ({ q, k, cos, sin }, { inverse }) => {
    const [rows, , d] = q.shape as [number, number, number];
    const c = reshape(cos, [rows, 1, d / 2]);
    const s = inverse ? neg(reshape(sin, [rows, 1, d / 2])) : reshape(sin, [rows, 1, d / 2]);
    return [q, k].map((x) => {
      const heads = x.shape[1]!;
      const first = slice(x, [0, 0, 0], [rows, heads, d / 2]);
      const second = slice(x, [0, 0, d / 2], [rows, heads, d / 2]);
      return concat([add(mul(first, c), neg(mul(second, s))), add(mul(second, c), mul(first, s))], 2);
    });
  },
};

/**
 * Rotary position embedding of the queries and keys of one layer. The backward pass is the inverse rotation and saves
 * nothing but the shared tables.
 * @param q [rows, heads, d] f32, rows = batch · time
 * @param k [rows, kvHeads, d] f32
 * @param cos [rows, d / 2] f32, cosines of each row's angles (times the attention scaling where the scaling has one)
 * @param sin [rows, d / 2] f32
 */
export function rope(q: Tensor3D, k: Tensor3D, cos: Tensor2D, sin: Tensor2D): readonly [q: Tensor3D, k: Tensor3D] {
  return withGradients(
    [q, k],
    (save) => {
      // Shared by all layers, so that this holds no copies: they may be tensors of this pass alone.
      save([cos, sin]);
      return runOp(ropeOp, { q, k, cos, sin }, { inverse: false });
    },
    // The transpose of (scaling · rotation) is (scaling · inverse rotation): the tables carry the scaling both ways.
    ([dq, dk], [c, s]) => runOp(ropeOp, { q: dq!, k: dk!, cos: c!, sin: s! }, { inverse: true }),
  ) as [Tensor3D, Tensor3D];
}
