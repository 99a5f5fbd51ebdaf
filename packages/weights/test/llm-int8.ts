import { createDraw, noise, tensor2d, type Tensor2D } from '@niwaki/tensor';
import { affine, encodeAffine, type Weight } from '../src/index.ts';
import { rowsOfTensor } from '../src/rows.ts';

/** Rows and entries of x, rows of W. */
export const oddSizes: readonly (readonly [rows: number, width: number, out: number])[] = [
  [1, 1, 1],
  [1, 7, 3],
  [5, 33, 7],
  [7, 65, 64],
  [3, 1000, 5],
];

/** x with outliers in it, a packed int8 W, and their product by the definition with a threshold of 6. */
export async function productWithOutliers(
  rows: number,
  width: number,
  out: number,
): Promise<{
  readonly given: Tensor2D;
  readonly weight: Weight;
  /** `room`: for sums of f32 in another order. */
  readonly expected: { readonly values: readonly number[]; readonly room: number };
  free(): void;
}> {
  const [x, w] = [rows, out].map((count, i) => noise([count, width], createDraw(1, 0).at('x', i), 'gaussian') as Tensor2D);
  const values = Float32Array.from((await x!.data()) as Float32Array, (value, i) => (i % 13 === 5 ? 9 * value : value));
  const matrix = ((await w!.data()) as Float32Array).slice();
  const stored = { bits: 8, groupSize: width, grid: 'absmax' } as const;
  const weight = affine('m', [out, width], await encodeAffine('m', [out, width], rowsOfTensor(w!), stored), stored);
  const given = tensor2d(values, [rows, width]);
  for (const tensor of [x!, w!]) tensor.dispose();
  const product = llmInt8(values, matrix, { rows, width, out, threshold: 6 });
  return {
    given,
    weight,
    expected: { values: product, room: 1e-5 * Math.max(...product.map(Math.abs)) },
    free: () => {
      given.dispose();
      for (const part of Object.values(weight.parts)) part.dispose();
    },
  };
}

interface Product {
  readonly rows: number;
  readonly width: number;
  readonly out: number;
  readonly threshold: number;
}

/** The definition: integers that are multiplied and scaled, and columns of x with outliers in floats with decoded columns of W. */
function llmInt8(x: Float32Array, w: Float32Array, { rows, width, out, threshold }: Product): number[] {
  const columns = Array.from({ length: width }, (_, c) => c);
  const isFloat = columns.map((c) => Array.from({ length: rows }, (_, r) => Math.abs(x[r * width + c]!)).some((size) => size >= threshold));
  const codes = (values: readonly number[], counts: (value: number) => boolean): { scale: number; codes: number[] } => {
    const scale = Math.fround(Math.max(0, ...values.filter(counts).map(Math.abs)));
    const step = Math.fround(scale / 127);
    return { scale, codes: values.map((value) => (scale === 0 ? 0 : roundEven(Math.fround(value / step)))) };
  };
  const rowOf = (from: Float32Array, r: number): number[] => [...from.subarray(r * width, (r + 1) * width)];
  const weights = Array.from({ length: out }, (_, o) => codes(rowOf(w, o), () => true));
  return Array.from({ length: rows }, (_, r) => {
    const values = rowOf(x, r);
    const { scale, codes: own } = codes(values, (value) => Math.abs(value) < threshold);
    return weights.map(({ scale: other, codes: row }) => {
      const whole = columns.reduce((sum, c) => sum + (isFloat[c] ? 0 : own[c]! * row[c]!), 0);
      const float = columns.reduce((sum, c) => sum + (isFloat[c] ? (values[c]! * row[c]! * other) / 127 : 0), 0);
      return (whole * scale * other) / 127 ** 2 + float;
    });
  }).flat();
}

/** Half to even. */
function roundEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}
