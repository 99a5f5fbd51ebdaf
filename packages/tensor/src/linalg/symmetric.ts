import { CholeskyDecomposition, EigenvalueDecomposition, type Matrix } from 'ml-matrix';
import { NumericError } from '../errors.ts';
import { tensor1d, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { expectSquare, readMatrix, toTensor } from './host-matrix.ts';

/** How far an entry may be from its mirror image, relative to the largest entry: f32 sums in two orders. */
const symmetryTolerance = 1e-5;

/**
 * Lower triangular l with a = l·lᵀ, on the host in double precision.
 * @param a [n, n] f32, symmetric
 * @throws NumericError where a is not symmetric, or not positive definite (a damping on the diagonal helps)
 */
export async function cholesky(a: Tensor2D): Promise<Tensor2D> {
  const decomposition = new CholeskyDecomposition(await readSymmetric(a, 'cholesky'));
  if (decomposition.isPositiveDefinite()) return toTensor(decomposition.lowerTriangularMatrix);
  throw new NumericError(`cholesky: the matrix [${a.shape}] is not positive definite`, {
    shape: a.shape,
    help: 'Add a small multiple of the mean diagonal to the diagonal.',
  });
}

/**
 * Eigenvalues in descending order and orthonormal eigenvectors as columns: a = vectors · diag(values) · vectorsᵀ. On the
 * host in double precision, O(n³).
 * @param a [n, n] f32, symmetric @throws NumericError where a is not symmetric
 */
export async function eigenSymmetric(a: Tensor2D): Promise<{ values: Tensor1D; vectors: Tensor2D }> {
  const decomposition = new EigenvalueDecomposition(await readSymmetric(a, 'eigenSymmetric'), { assumeSymmetric: true });
  const order = decomposition.realEigenvalues
    .map((_, i) => i)
    .sort((i, j) => decomposition.realEigenvalues[j]! - decomposition.realEigenvalues[i]!);
  const vectors = decomposition.eigenvectorMatrix.subMatrixColumn(order);
  return { values: tensor1d(order.map((i) => decomposition.realEigenvalues[i]!)), vectors: toTensor(vectors) };
}

/** Checks that the matrix is symmetric to rounding, then makes it so exactly: the decompositions test with ===. */
async function readSymmetric(a: Tensor2D, what: string): Promise<Matrix> {
  expectSquare(a, what);
  const matrix = await readMatrix(a, what);
  const scale = Math.max(Math.abs(matrix.max()), Math.abs(matrix.min()));
  for (let i = 0; i < matrix.rows; i++) {
    for (let j = 0; j < i; j++) {
      const [here, there] = [matrix.get(i, j), matrix.get(j, i)];
      if (Math.abs(here - there) > symmetryTolerance * scale) {
        throw new NumericError(`${what}: the matrix is not symmetric: ${here} at [${i}, ${j}], ${there} at [${j}, ${i}]`, {
          at: [i, j],
          here,
          there,
        });
      }
      const mean = (here + there) / 2;
      matrix.set(i, j, mean).set(j, i, mean);
    }
  }
  return matrix;
}
