/**
 * Q of a square gaussian matrix's QR factorization, row-major: Gram-Schmidt in f64, twice for each row so that rounding
 * does not leave it askew. For the small matrices of a rank; O(size³) on the host.
 * @param values size·size numbers
 */
export function orthogonalMatrix(values: ArrayLike<number>, size: number): Float64Array {
  // Columns of the input become the columns of Q; they are kept as rows while they are worked on.
  const columns = Array.from({ length: size }, (_, c) => Float64Array.from({ length: size }, (_, r) => values[r * size + c]!));
  for (const [c, column] of columns.entries()) {
    for (let pass = 0; pass < 2; pass++) {
      for (const earlier of columns.slice(0, c)) subtract(column, earlier, dot(column, earlier));
    }
    const length = Math.sqrt(dot(column, column));
    for (let r = 0; r < size; r++) column[r]! /= length;
  }
  return Float64Array.from({ length: size * size }, (_, i) => columns[i % size]![Math.floor(i / size)]!);
}

const dot = (x: Float64Array, y: Float64Array): number => x.reduce((sum, value, i) => sum + value * y[i]!, 0);

function subtract(from: Float64Array, direction: Float64Array, amount: number): void {
  for (let i = 0; i < from.length; i++) from[i]! -= amount * direction[i]!;
}
