import { Matrix } from 'ml-matrix';
import { NumericError, ShapeError } from '../errors.ts';
import { tensor2d, type Tensor2D } from '../tfjs.ts';

/**
 * A matrix on the host in double precision. Decompositions loop forever or return nonsense on NaN, so values that are not
 * finite end here.
 */
export async function readMatrix(a: Tensor2D, what: string): Promise<Matrix> {
  const [rows, columns] = a.shape;
  const values = await a.data();
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) {
    const at = [Math.floor(bad / columns), bad % columns] as const;
    throw new NumericError(`${what}: entry [${at}] of the matrix [${rows}, ${columns}] is ${values[bad]}`, { at, value: values[bad] });
  }
  if (rows === 0 || columns === 0) throw new ShapeError(`${what}: the matrix is empty, [${rows}, ${columns}]`, { shape: a.shape });
  return Matrix.from1DArray(rows, columns, values as unknown as number[]);
}

export const toTensor = (matrix: Matrix): Tensor2D => tensor2d(Float32Array.from(matrix.to1DArray()), [matrix.rows, matrix.columns]);

export function expectSquare({ shape: [rows, columns] }: Tensor2D, what: string): void {
  if (rows !== columns) throw new ShapeError(`${what}: the matrix must be square, got [${rows}, ${columns}]`, { shape: [rows, columns] });
}
