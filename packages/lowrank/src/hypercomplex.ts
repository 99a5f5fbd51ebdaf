import { matMul, reshape, transpose, type Tensor, type Tensor2D } from '@niwaki/tensor';

/** A matrix Σ_i A_i ⊗ (s_i·t_i) of [in, out], in its factors. */
export interface HypercomplexFactors {
  /** The A_i, [n, n, n]: i, block row, block column. */
  readonly rule: Tensor;
  /** [n, in / n, rank] */
  readonly s: Tensor;
  /** [n, rank, out / n] */
  readonly t: Tensor;
}

/**
 * x [rows, in] times Σ_i A_i ⊗ (s_i·t_i), [rows, out] (Zhang et al. 2021; Mahabadi et al. 2021). The matrix is never
 * made: of a row, read as n blocks, each is multiplied by s_i, the blocks are mixed by A_i and spread by t_i.
 * n·rank·(in + n² + out) products a row.
 */
export function hypercomplex(x: Tensor2D, { rule, s, t }: HypercomplexFactors): Tensor2D {
  const rows = x.shape[0];
  const [n, inner, rank] = s.shape as [number, number, number];
  const outer = t.shape[2]!;
  const narrow = matMul(reshape(x, [rows * n, inner]), reshape(transpose(s, [1, 0, 2]), [inner, n * rank]));
  // [rows, block, i, rank] → for each i: [rows · rank, block].
  const byRule = reshape(transpose(reshape(narrow, [rows, n, n, rank]), [2, 0, 3, 1]), [n, rows * rank, n]);
  const mixed = transpose(reshape(matMul(byRule, rule), [n, rows, rank, n]), [1, 3, 0, 2]);
  return reshape(matMul(reshape(mixed, [rows * n, n * rank]), reshape(t, [n * rank, outer])), [rows, n * outer]);
}
