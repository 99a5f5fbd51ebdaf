import { QrDecomposition, type Matrix } from 'ml-matrix';
import { ShapeError } from '../errors.ts';
import type { Tensor2D } from '../tfjs.ts';
import { readMatrix, toTensor } from './host-matrix.ts';

/**
 * Thin QR of a tall matrix: a = q·r, q [m, n] with orthonormal columns, r [n, n] upper triangular with a diagonal that is
 * not negative, which makes it unique where the columns are independent. On the host in double precision, O(m·n²).
 * @param a [m, n] f32 with m ≥ n @throws ShapeError for a wide matrix, NumericError for values that are not finite
 */
export async function qr(a: Tensor2D): Promise<{ q: Tensor2D; r: Tensor2D }> {
  const [rows, columns] = a.shape;
  if (rows < columns)
    throw new ShapeError(`qr: the matrix must be tall, got [${rows}, ${columns}]`, { shape: a.shape, help: 'Transpose it.' });
  const { q, r } = hostQr(await readMatrix(a, 'qr'));
  return { q: toTensor(q), r: toTensor(r) };
}

export function hostQr(a: Matrix): { q: Matrix; r: Matrix } {
  const decomposition = new QrDecomposition(a);
  const [q, r] = [decomposition.orthogonalMatrix, decomposition.upperTriangularMatrix];
  for (let k = 0; k < a.columns; k++) {
    if (r.get(k, k) >= 0) continue;
    q.mulColumn(k, -1);
    r.mulRow(k, -1);
  }
  return { q, r };
}
