/** One operand of a product inside a flat array: where it starts, and how far it is to its next row and to the next term of a sum. */
export interface Operand {
  readonly values: ArrayLike<number>;
  readonly at: number;
  readonly outer: number;
  readonly inner: number;
}

/** Rows and columns of the result, and the length of each sum. */
export interface Extent {
  readonly rows: number;
  readonly columns: number;
  readonly terms: number;
}

/** Where the result lies: `ld` entries from one row to the next. */
export interface Target {
  readonly values: Float32Array | Int32Array;
  readonly at: number;
  readonly ld: number;
}

/** target = a·b, choosing the loop that walks b's memory forward. */
export function multiply(a: Operand, b: Operand, target: Target, extent: Extent): void {
  if (b.inner === 1) dotRows(a, b, target, extent);
  else {
    for (let i = 0; i < extent.rows; i++) target.values.fill(0, target.at + i * target.ld, target.at + i * target.ld + extent.columns);
    addScaledRows(a, b, target, extent);
  }
}

/** target = a·bᵀ where the terms of b lie side by side. Four columns share each load of a; sums are carried in double. */
function dotRows(a: Operand, b: Operand, target: Target, { rows, columns, terms }: Extent): void {
  const { values: x } = a;
  const { values: y } = b;
  const { values: out } = target;
  for (let i = 0; i < rows; i++) {
    const from = a.at + i * a.outer;
    const to = target.at + i * target.ld;
    let j = 0;
    for (; j + 4 <= columns; j += 4) {
      let s0 = 0;
      let s1 = 0;
      let s2 = 0;
      let s3 = 0;
      let p0 = b.at + j * b.outer;
      let p1 = p0 + b.outer;
      let p2 = p1 + b.outer;
      let p3 = p2 + b.outer;
      for (let k = 0, p = from; k < terms; k++, p += a.inner) {
        const v = x[p]!;
        s0 += v * y[p0++]!;
        s1 += v * y[p1++]!;
        s2 += v * y[p2++]!;
        s3 += v * y[p3++]!;
      }
      out[to + j] = s0;
      out[to + j + 1] = s1;
      out[to + j + 2] = s2;
      out[to + j + 3] = s3;
    }
    for (; j < columns; j++) {
      let sum = 0;
      for (let k = 0, p = from, q = b.at + j * b.outer; k < terms; k++, p += a.inner) sum += x[p]! * y[q++]!;
      out[to + j] = sum;
    }
  }
}

/** target += a·b where the columns of b lie side by side. Four terms share each load and store of the result. */
export function addScaledRows(a: Operand, b: Operand, target: Target, { rows, columns, terms }: Extent): void {
  const { values: x } = a;
  const { values: y } = b;
  const { values: out } = target;
  for (let i = 0; i < rows; i++) {
    const from = a.at + i * a.outer;
    const to = target.at + i * target.ld;
    let k = 0;
    for (; k + 4 <= terms; k += 4) {
      const p = from + k * a.inner;
      const v0 = x[p]!;
      const v1 = x[p + a.inner]!;
      const v2 = x[p + 2 * a.inner]!;
      const v3 = x[p + 3 * a.inner]!;
      let q0 = b.at + k * b.inner;
      let q1 = q0 + b.inner;
      let q2 = q1 + b.inner;
      let q3 = q2 + b.inner;
      for (let j = 0; j < columns; j++) out[to + j]! += v0 * y[q0++]! + v1 * y[q1++]! + v2 * y[q2++]! + v3 * y[q3++]!;
    }
    for (; k < terms; k++) {
      const v = x[from + k * a.inner]!;
      for (let j = 0, q = b.at + k * b.inner; j < columns; j++) out[to + j]! += v * y[q++]!;
    }
  }
}
