import { runOp, type Op } from '../op.ts';
import type { PackedShape } from '../packed/layout.ts';
import { abs, div, greaterEqual, max, mul, reshape, round, tidy, where, zerosLike, type Tensor, type Tensor2D } from '../tfjs.ts';
import { multiplyPacked, packedMatMul, packedMatMulOp, type PackedInputs, type PackedTensors } from './packed-matmul.ts';

/**
 * How a few rows of x meet a packed matrix: as they are, or rounded to integers of 16 or 8 bits with one f32 scale for each
 * 32 entries of a row, which wasm and WebGPU multiply with the codes as they lie. A codebook's 16 values are rounded too,
 * to multiples of 1/8191 ('int16') or 1/63 ('int8') of the largest.
 */
export type Activations = 'exact' | 'int16' | 'int8';
export const activationModes: readonly Activations[] = ['exact', 'int16', 'int8'];

/** Entries of a row of x that share a scale. */
const block = 32;
/** Products with more rows decode W once for all of them, and are exact. */
const mostRows = 4;
/** A block whose largest entry is smaller counts as zeros: the inverse of its scale would not be finite. */
const least = 2 ** -100;

/** Largest integers, for x and for a codebook. */
export const integerLevels = { int16: { x: 32767, codebook: 8191 }, int8: { x: 127, codebook: 63 } } as const;

/** Whether a matrix has blocks and rows of whole multiples of 32 entries, and codes that are integers or name 16 values. */
export function takesIntegers({ format, in: width, blockSize, bits }: PackedShape): boolean {
  if (format === 'F16' || format === 'BF16' || width % block !== 0) return false;
  if (format === 'affine' || format === 'affine-symmetric') return (bits === 4 || bits === 8) && blockSize % block === 0;
  return blockSize % block === 0;
}

type IntegerAttributes = PackedShape & { activations: 'int16' | 'int8' };

/**
 * Inputs x [rows <= 4, in] and the parts. Output [x̂·Ŵᵀ], x̂ being `roundActivations(x)` and Ŵ the matrix, of its codebook the
 * rounded values. A kernel sums codes in integers, which is exact, and blocks in f32.
 */
export const integerMatMulOp: Op<PackedInputs<'x'>, IntegerAttributes> = {
  kernelName: 'NiwakiIntegerMatMul',
  reference: ({ x, ...parts }, { activations, ...shape }) => {
    const { codebook } = parts;
    const rounded = codebook === undefined ? parts : { ...parts, codebook: roundTo(codebook, integerLevels[activations].codebook) };
    return runOp(packedMatMulOp, { ...rounded, x: roundActivations(x as Tensor2D, activations) }, { ...shape, transposed: false });
  },
};

/**
 * x [rows, in] with every entry a whole multiple of its block's scale, max|x| / 32767 or max|x| / 127, halves to even.
 * An entry that is not finite makes its block NaN.
 */
export const roundActivations = (x: Tensor2D, activations: 'int16' | 'int8'): Tensor2D =>
  tidy(() => reshape(roundTo(reshape(x, [x.size / block, block]), integerLevels[activations].x), x.shape));

/** Each row (of a vector: all of it) in integers up to `most` times a scale. */
function roundTo(values: Tensor, most: number): Tensor {
  const largest = max(abs(values), -1, true);
  const counts = greaterEqual(largest, least);
  const scale = where(counts, div(largest, most), zerosLike(largest));
  const inverse = where(counts, div(most, largest), zerosLike(largest));
  return mul(round(mul(values, inverse)), scale);
}

/**
 * x·Wᵀ over a packed W (out, in): at most four rows of x are rounded as `activations` says, where W's format takes it
 * (`takesIntegers`); other products are exact. The gradient is the exact product's, as if x had not been rounded.
 * @param x [rows, in] f32
 * @param options `unread`: see `packedMatMul`
 */
export function integerMatMul(
  x: Tensor2D,
  parts: PackedTensors,
  shape: PackedShape,
  { activations = 'exact', unread }: { readonly activations?: Activations; readonly unread?: boolean } = {},
): Tensor2D {
  if (activations === 'exact' || unread === true || x.shape[0] > mostRows || !takesIntegers(shape)) {
    return packedMatMul(x, parts, shape, { unread });
  }
  return multiplyPacked(x, parts, shape, (inputs) => runOp(integerMatMulOp, inputs, { ...shape, activations })[0]!);
}
