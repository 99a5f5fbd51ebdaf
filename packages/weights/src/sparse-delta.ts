import {
  cast,
  denseParameter,
  matMul,
  reshape,
  scatterND,
  ShapeError,
  slice,
  tidy,
  unpackFields,
  withGradient,
  type Parameter,
  type Places,
  type Range,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { addressed, entriesOf } from './entries.ts';
import { decodedMatMul } from './masked.ts';
import type { Weight } from './weight.ts';

export interface SparseDeltaParts {
  /** f32 [entries], with its places. */
  readonly values: Parameter;
  /** One int32 word an entry: `packPlaces`. */
  readonly index: Parameter;
}

/** Rows and columns are 16 bits each. */
const longestSide = 2 ** 16;
const mostEntries = 2 ** 31;

/**
 * Some entries of a matrix, zeros elsewhere, in any order: what is added to another weight. 8 bytes an entry. Both may be
 * written anew at any time, so that entries come and go. A product builds the matrix first, 4 bytes an entry of it, and
 * keeps it in no direction; training, x is kept, and the gradient of the matrix lives for a moment, at most 2^24 entries of it.
 * Whoever asked for that gradient is given the same one.
 */
export function sparseDelta(shape: readonly [number, number], { values, index }: SparseDeltaParts): Weight {
  const places = values.places;
  if (places === undefined || places.shape.join() !== shape.join())
    throw new ShapeError(`'${values.path}' has no places in a matrix [${shape}]`, { path: values.path, shape });
  const weight: Weight = {
    kind: 'sparse-delta',
    options: { entries: values.shape[0]! },
    shape,
    parts: { values, index },
    apply: (x, call) => {
      if (!call.tracks(values) && !call.wants(weight)) return decodedMatMul(x, () => expand(call.value(values), places));
      const value = call.value(values);
      return withGradient(
        [x, value],
        (save) => {
          save([x, value]);
          return tidy(() => matMul(x, expand(value, places), false, true));
        },
        (dy, [x, value]) =>
          tidy(() => {
            const gradient = gradientOf(dy as Tensor2D, x as Tensor2D);
            const own = entriesOf(gradient, places.read(), shape);
            if (call.wants(weight)) call.give(weight, gradient);
            return [matMul(dy as Tensor2D, expand(value!, places)), own];
          }),
      ) as Tensor2D;
    },
    dense: (rows) =>
      tidy(() => {
        const whole = expand(values.read(), places);
        return rows === undefined ? whole : slice(whole, [rows[0], 0], [rows[1] - rows[0], shape[1]]);
      }),
  };
  return weight;
}

/** A parameter of places and one of values at them, `index` int32 [entries] of `packPlaces`. Takes both tensors over. */
export function placedParameters(
  paths: { readonly values: string; readonly index: string },
  shape: readonly [number, number],
  tensors: { readonly values: Tensor1D; readonly index: Tensor1D },
): SparseDeltaParts {
  const index = denseParameter(paths.index, tensors.index, { role: 'index' });
  const places: Places = { shape, read: () => placesOf(index.read() as Tensor1D) };
  return { index, values: denseParameter(paths.values, tensors.values, { role: 'values', trainable: true, places }) };
}

/**
 * Flat places, row after row, as words: the row in the low 16 bits, the column in the high ones. A flat number would not
 * be exact in f32, which is what WebGPU computes addresses in.
 * @throws ShapeError, as `checkPlaces`
 */
export function packPlaces(flat: ArrayLike<number>, shape: readonly [number, number]): Int32Array {
  checkPlaces(shape);
  return Int32Array.from(flat, (at) => Math.floor(at / shape[1]) | ((at % shape[1]) << 16));
}

/** The flat places of words. */
export const flatPlaces = (words: ArrayLike<number>, [, width]: readonly [number, number]): Int32Array =>
  Int32Array.from(words, (word) => (word & 0xffff) * width + (word >>> 16));

/** @throws ShapeError for a matrix with a side above 65536 or with 2^31 entries */
export function checkPlaces(shape: readonly [number, number], path?: string): void {
  if (Math.max(...shape) <= longestSide && shape[0] * shape[1] < mostEntries) return;
  throw new ShapeError(`single entries have places in matrices of sides up to ${longestSide} and less than 2^31 entries, got [${shape}]`, {
    ...(path !== undefined && { path }),
    shape,
    help: 'Leave this matrix out of `at`.',
  });
}

/** Row and column of each entry, int32 [entries, 2]. */
const placesOf = (words: Tensor1D): Tensor2D =>
  tidy(() => cast(reshape(unpackFields(words, { bits: 16, count: 2 * words.size }), [words.size, 2]), 'int32') as Tensor2D);

const expand = (values: Tensor, { shape, read }: Places): Tensor2D => tidy(() => scatterND(read(), values, [...shape]) as Tensor2D);

const columns = (dy: Tensor2D, rows: Range | undefined): Tensor2D =>
  rows === undefined ? dy : slice(dy, [0, rows[0]], [dy.shape[0], rows[1] - rows[0]]);

/** dyᵀ·x by rows: one product where the whole may be addressed at once, else one for each that is asked for. */
function gradientOf(dy: Tensor2D, x: Tensor2D): (rows?: Range) => Tensor2D {
  const [out, width] = [dy.shape[1], x.shape[1]];
  if (out * width > addressed) return (rows) => matMul(columns(dy, rows), x, true, false);
  const whole: Tensor2D = matMul(dy, x, true, false);
  return (rows) => (rows === undefined || rows[1] - rows[0] === out ? whole : slice(whole, [rows[0], 0], [rows[1] - rows[0], width]));
}
