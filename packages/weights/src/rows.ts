import { slice, tidy, type Range, type Tensor2D } from '@niwaki/tensor';
import type { Weight } from './weight.ts';

/** Rows [from, to) of a matrix (out, in) as f32, row-major: from a file, a device or another weight. Asked for in order, once each. */
export type RowReader = (rows: Range) => Promise<Float32Array>;

/** A weight's rows, widened a range at a time. */
export const rowsOf =
  (weight: Weight): RowReader =>
  async (rows) =>
    read(weight.dense(rows));

/** The rows of a matrix on the device. */
export const rowsOfTensor =
  (dense: Tensor2D): RowReader =>
  async ([from, to]) =>
    read(tidy(() => slice(dense, [from, 0], [to - from, dense.shape[1]])));

async function read(rows: Tensor2D): Promise<Float32Array> {
  try {
    return (await rows.data()) as Float32Array;
  } finally {
    rows.dispose();
  }
}

const chunkElements = 2 ** 19;

/**
 * Walks a matrix in runs of whole rows, about 2 MiB of f32 at a time.
 * @param multiple every run but the last holds a multiple of this many elements, so that flat blocks never straddle two runs
 */
export async function forEachRun(
  [out, width]: readonly [number, number],
  rows: RowReader,
  visit: (values: Float32Array, firstElement: number) => void,
  { multiple = 1 }: { multiple?: number } = {},
): Promise<void> {
  const least = multiple / greatestCommonDivisor(multiple, width);
  const step = Math.max(1, Math.floor(chunkElements / width / least)) * least;
  for (let from = 0; from < out; from += step) visit(await rows([from, Math.min(out, from + step)]), from * width);
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
