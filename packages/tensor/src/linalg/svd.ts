import { SingularValueDecomposition, type Matrix } from 'ml-matrix';
import { ConfigError } from '../errors.ts';
import { noise, type Noise } from '../noise.ts';
import { matMul, tensor1d, tensor2d, tidy, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { readMatrix, toTensor } from './host-matrix.ts';
import { hostQr } from './qr.ts';

/** a ≈ u · diag(s) · vᵀ: u [m, k] and v [n, k] with orthonormal columns, s [k] descending. New tensors, the caller's. */
export interface Svd {
  readonly u: Tensor2D;
  readonly s: Tensor1D;
  readonly v: Tensor2D;
}

/**
 * Singular value decomposition with k = min(m, n), on the host in double precision: O(m·n·min(m, n)), a second or so at
 * 500 × 500. The largest entry of every column of u is positive, so that the signs are the same on every device.
 * @param a [m, n] f32 @throws NumericError for values that are not finite
 */
export async function svd(a: Tensor2D): Promise<Svd> {
  return cut(hostSvd(await readMatrix(a, 'svd')), Math.min(...a.shape));
}

export interface TruncatedSvdOptions {
  /** Singular values wanted. */
  readonly rank: number;
  /** Where the start is drawn; the same address gives the same result. */
  readonly noise: Noise;
  /** Columns beyond the rank that are iterated with and dropped; default 10. */
  readonly oversample?: number;
  /** Default 4; more where the singular values fall slowly. */
  readonly iterations?: number;
}

/**
 * The largest singular values and their vectors by randomized subspace iteration (Halko, Martinsson & Tropp 2011,
 * algorithms 4.4 and 5.1). The products with the matrix run on the device; the host sees thin matrices only, of
 * rank + oversample columns. Exact where that covers the smaller side.
 * @param a [m, n] f32 @throws ConfigError for a rank beyond min(m, n), NumericError for values that are not finite
 */
export async function truncatedSvd(
  a: Tensor2D,
  { rank, noise: address, oversample = 10, iterations = 4 }: TruncatedSvdOptions,
): Promise<Svd> {
  const [rows, columns] = a.shape;
  const least = Math.min(rows, columns);
  if (!(Number.isInteger(rank) && rank >= 1 && rank <= least)) {
    throw new ConfigError(`truncatedSvd: rank must be from 1 to ${least}, the smaller side of [${rows}, ${columns}], got ${rank}`, {
      rank,
    });
  }
  const width = rank + oversample;
  if (width >= least) return cut(hostSvd(await readMatrix(a, 'truncatedSvd')), rank);
  let basis = await orthonormal(() => matMul(a, noise([columns, width], address, 'gaussian') as Tensor2D));
  for (let i = 0; i < iterations; i++) {
    // Orthonormal again after every product: powers of the matrix would drown the smaller directions in rounding.
    const right = await orthonormal(using(basis, (q) => matMul(a, q, true, false)));
    basis = await orthonormal(using(right, (q) => matMul(a, q)));
  }
  // a ≈ q·(qᵀ·a): the small factor, decomposed transposed so that it is tall.
  const small = await read(using(basis, (q) => matMul(a, q, true, false)));
  const { u: v, s, v: rotation } = hostSvd(small);
  return cut({ u: basis.mmul(rotation), s, v }, rank);
}

async function read(make: () => Tensor2D): Promise<Matrix> {
  const product = tidy(make);
  try {
    return await readMatrix(product, 'truncatedSvd');
  } finally {
    product.dispose();
  }
}

const orthonormal = async (make: () => Tensor2D): Promise<Matrix> => hostQr(await read(make)).q;

const using =
  (matrix: Matrix, product: (q: Tensor2D) => Tensor2D): (() => Tensor2D) =>
  () =>
    product(tensor2d(Float32Array.from(matrix.to1DArray()), [matrix.rows, matrix.columns]));

interface HostSvd {
  readonly u: Matrix;
  readonly s: readonly number[];
  readonly v: Matrix;
}

function hostSvd(a: Matrix): HostSvd {
  const decomposition = new SingularValueDecomposition(a, { autoTranspose: true });
  return { u: decomposition.leftSingularVectors, s: decomposition.diagonal, v: decomposition.rightSingularVectors };
}

function cut({ u, s, v }: HostSvd, rank: number): Svd {
  const [left, right] = [u, v].map((matrix) => matrix.subMatrix(0, matrix.rows - 1, 0, rank - 1)) as [Matrix, Matrix];
  fixSigns(left, right);
  return { u: toTensor(left), s: tensor1d(s.slice(0, rank)), v: toTensor(right) };
}

function fixSigns(u: Matrix, v: Matrix): void {
  for (let k = 0; k < u.columns; k++) {
    const column = u.getColumn(k);
    const largest = column.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
    if (largest >= 0) continue;
    u.mulColumn(k, -1);
    v.mulColumn(k, -1);
  }
}
