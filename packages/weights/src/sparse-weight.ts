import { ConfigError, denseParameter, tensor2d, type Tensor2D } from '@niwaki/tensor';
import { csr, packCsr } from './csr.ts';
import { denseWeight } from './dense.ts';
import { encodeGgufBlocks } from './encode-gguf.ts';
import { packMask } from './entry-mask.ts';
import { ggufBlock } from './gguf-block.ts';
import { masked } from './masked.ts';
import { nOfM, packNOfM, type NOfM } from './n-of-m.ts';
import { rowsOfTensor } from './rows.ts';
import { isHalf, storedValues } from './stored-values.ts';
import type { Weight } from './weight.ts';

/** How a matrix with zeros to stay is stored. */
export type Store = 'masked' | 'n-of-m' | 'csr';

/** A store, and for 'n-of-m' its n and m. */
export interface SparseForm extends Partial<NOfM> {
  readonly store: Store;
}

/** The form of a weight whose zeros stay; undefined for any other. */
export function sparseFormOf({ kind, options }: Pick<Weight, 'kind' | 'options'>): SparseForm | undefined {
  if (kind === 'masked' || kind === 'csr') return { store: kind };
  if (kind !== 'n-of-m') return undefined;
  const { n, m } = options as unknown as NOfM;
  return { store: kind, n, m };
}

/**
 * A weight of a sparse form, with `values` where the flags are 1, in the precision of another one: f32, or half where that
 * holds halves; a mask goes over any format that encodes. Host memory: 4 bytes an entry.
 * @param old stays as it is
 * @param kept one byte an entry
 * @throws ConfigError for 'n-of-m' without n and m; ShapeError where a group keeps more than n; FormatError for 'csr' without an entry
 */
export async function sparseWeight(
  path: string,
  old: Weight,
  { values, kept }: { readonly values: ArrayLike<number>; readonly kept: Uint8Array },
  { store, n, m }: SparseForm,
): Promise<Weight> {
  const { shape } = old;
  if (store === 'masked') {
    const matrix = tensor2d(
      Float32Array.from(kept, (keep, e) => (keep === 1 ? values[e]! : 0)),
      [shape[0], shape[1]],
    );
    const inFloats = old.matrix !== undefined && old.matrix.stored === undefined;
    const made = masked(path, inFloats ? likeMatrix(old, matrix) : await encoded(old, matrix, path), packMask(kept));
    if (made.matrix !== undefined) made.matrix.trainable = old.matrix?.trainable ?? false;
    return made;
  }
  if (store === 'n-of-m') {
    if (n === undefined || m === undefined) throw new ConfigError(`'${path}': store 'n-of-m' needs n and m`, { path, n, m });
    const packed = packNOfM(path, values, shape, { n, m, kept });
    const stored = await valuesLike(old, packed.values, [shape[0], (shape[1] / m) * n], `${path}.values`);
    return nOfM(path, shape, { values: stored, index: packed.index }, { n, m });
  }
  const packed = packCsr(values, shape, kept);
  const stored = await valuesLike(old, packed.values, [1, packed.values.length], `${path}.values`);
  return csr(path, shape, { values: stored, columns: packed.columns, rows: packed.rows });
}

async function encoded(old: Weight, matrix: Tensor2D, path: string): Promise<Weight> {
  try {
    return await old.encode!(matrix, path);
  } finally {
    matrix.dispose();
  }
}

/** The matrix under the name and role of the old one. */
function likeMatrix({ matrix: old }: Weight, matrix: Tensor2D): Weight {
  const { path, role, trainable, constraint } = old!;
  const { mask: _, ...rest } = constraint ?? {};
  return denseWeight(denseParameter(path, matrix, { role, trainable, constraint: rest }));
}

async function valuesLike(old: Weight, values: Float32Array, shape: readonly [number, number], path: string): Promise<Weight> {
  const matrix = tensor2d(values, [shape[0], shape[1]]);
  const format = halfOf(old);
  if (format === undefined) {
    const trainable = old.matrix?.trainable ?? old.parts['values']?.trainable ?? false;
    return denseWeight(denseParameter(`${path}.weight`, matrix, { role: 'values', trainable }));
  }
  try {
    return ggufBlock(path, shape, format, await encodeGgufBlocks(path, shape, rowsOfTensor(matrix), format));
  } finally {
    matrix.dispose();
  }
}

function halfOf(weight: Weight): 'F16' | 'BF16' | undefined {
  const values = storedValues(weight);
  return isHalf(values) ? (values.options as { readonly format: 'F16' | 'BF16' }).format : undefined;
}
