import { NumericError } from '../errors.ts';

/**
 * Upper triangular U with UᵀU = H⁻¹, n x n row-major in double precision: H = R·Rᵀ with R upper, and U = R⁻¹. About n³/3
 * multiply-adds; `breath` is awaited once a row. H is overwritten.
 * @throws NumericError where H is not positive definite
 */
export async function inverseFactor(h: Float64Array, n: number, breath: () => Promise<void>): Promise<Float64Array> {
  const r = h;
  for (let j = n - 1; j >= 0; j--) {
    const rowJ = r.subarray(j * n, j * n + n);
    let diagonal = rowJ[j]!;
    for (let k = j + 1; k < n; k++) diagonal -= rowJ[k]! * rowJ[k]!;
    if (!(diagonal > 0)) {
      throw new NumericError(`the second moments of the input are not positive definite at column ${j}`, {
        column: j,
        pivot: diagonal,
        help: 'Raise damping, or calibrate with more tokens.',
      });
    }
    const root = Math.sqrt(diagonal);
    rowJ[j] = root;
    for (let i = 0; i < j; i++) {
      const at = i * n;
      let sum = r[at + j]!;
      for (let k = j + 1; k < n; k++) sum -= r[at + k]! * rowJ[k]!;
      r[at + j] = sum / root;
    }
    await breath();
  }
  const u = new Float64Array(n * n);
  for (let i = n - 1; i >= 0; i--) {
    const row = u.subarray(i * n, i * n + n);
    for (let k = i + 1; k < n; k++) {
      const factor = r[i * n + k]!;
      const other = u.subarray(k * n, k * n + n);
      for (let j = k; j < n; j++) row[j]! -= factor * other[j]!;
    }
    row[i] = 1;
    const scale = 1 / r[i * n + i]!;
    for (let j = i; j < n; j++) row[j]! *= scale;
    await breath();
  }
  return u;
}
