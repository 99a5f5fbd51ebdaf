import {
  ConfigError,
  denseParameter,
  div,
  FormatError,
  gather,
  mul,
  packBytes,
  packedBytes,
  tensor1d,
  tidy,
  type AffineBits,
  type PackedShape,
  type Parameter,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { affineGroupSize, checkAffine, isSymmetric, type AffineGrid } from './affine-grid.ts';
import { inverseOf, reorder, scaleColumns } from './columns.ts';
import { encodeAffine, type AffineParts } from './encode-affine.ts';
import { expectLength, packedReads, untracked, type ColumnMap, type PackedParameters } from './packed.ts';
import { rowsOfTensor } from './rows.ts';
import type { Weight } from './weight.ts';

export interface AffineOptions {
  readonly bits: AffineBits;
  /** Entries of a row that share a scale: a multiple of 8 that divides the row, or the whole row. */
  readonly groupSize: number;
  /** How a new matrix is brought into this form (`encode`); 'absmax' or 'asymmetric' as there are zeros or not, by default. */
  readonly grid?: AffineGrid;
}

/**
 * Integers of 2, 3, 4 or 8 bits with a scale, and where they are asymmetric a zero, for each group of a row:
 * w = scale · (code - zero). Bytes an entry: bits / 8 + 4 / groupSize, with zeros + 1 / groupSize; 4 bytes a column for an
 * order or input scales. 8 bits with a group a row are the int8 of one scale a row.
 *
 * Parts, in this order: `qweight` (the codes), `scales`, `zeros`, `order`, `input_scales`; the last three where they are
 * given, all under `path.`. Products decode as they multiply. With an order or input scales, the columns of x are
 * gathered or multiplied first: one more tensor of the size of x, and no assumption about the op before.
 * @param path module path
 * @param shape [out, in]
 * @throws FormatError for parts that do not fit the shape; ConfigError for options out of range
 */
export function affine(path: string, shape: readonly [number, number], parts: AffineParts, options: AffineOptions): Weight {
  const { bits } = options;
  const symmetric = parts.zeros === undefined;
  const grid = options.grid ?? (symmetric ? 'absmax' : 'asymmetric');
  checkAffine({ bits, grid });
  if (isSymmetric(grid) !== symmetric) {
    throw new ConfigError(`'${path}': the grid '${grid}' stores ${symmetric ? 'zeros, and none are' : 'no zeros, and some are'} given`, {
      path,
      grid,
    });
  }
  const groupSize = affineGroupSize(options.groupSize, shape[1], path);
  checkParts(path, shape, parts, { bits, groupSize });
  const packed: PackedShape = {
    format: symmetric ? 'affine-symmetric' : 'affine',
    out: shape[0],
    in: shape[1],
    blockSize: groupSize,
    bits,
  };
  const bytes = (name: string, values: Uint8Array, role: 'codes', logical: readonly number[]): Parameter =>
    denseParameter(`${path}.${name}`, packBytes(values), {
      role,
      shape: logical,
      file: { dtype: 'U8', shape: [values.length], bytes: values.length },
    });
  const inner: PackedParameters = {
    codes: bytes('qweight', parts.codes, 'codes', shape),
    scales: denseParameter(`${path}.scales`, tensor1d(parts.scales), { role: 'scale' }),
    ...(symmetric ? {} : { zeros: bytes('zeros', parts.zeros!, 'codes', [parts.zeros!.length]) }),
  };
  const order = parts.order && denseParameter(`${path}.order`, tensor1d(parts.order, 'int32'), { role: 'index' });
  const factors = parts.inputScales && denseParameter(`${path}.input_scales`, tensor1d(parts.inputScales), { role: 'scale' });
  const inverse = parts.order && inverseOf(parts.order);
  const columns: ColumnMap = {
    into: (x, call) => {
      const scaled = factors === undefined ? x : scaleColumns(x, untracked(factors, call) as Tensor1D);
      return order === undefined ? scaled : reorder(scaled, order.read() as Tensor1D, inverse!);
    },
    back: (rows) => {
      const sorted = inverse === undefined ? rows : (gather(rows, tensor1d(inverse, 'int32'), 1) as Tensor2D);
      return factors === undefined ? sorted : (mul(sorted, factors.read()) as Tensor2D);
    },
  };

  const weight: Weight = {
    kind: 'affine',
    options: { bits, groupSize, grid },
    shape: [shape[0], shape[1]],
    parts: Object.fromEntries(
      [...Object.values(inner), order, factors]
        .filter((part) => part !== undefined)
        .map((part) => [part.path.slice(path.length + 1), part]),
    ),
    ...packedReads(packed, inner, order === undefined && factors === undefined ? undefined : columns),
    encode: async (dense, target) => {
      const arranged = tidy(() => {
        const scaled = factors === undefined ? dense : div(dense, factors.read());
        return order === undefined ? (scaled.clone() as Tensor2D) : (gather(scaled, order.read() as Tensor1D, 1) as Tensor2D);
      });
      try {
        const encoded = await encodeAffine(`${target}.weight`, shape, rowsOfTensor(arranged), { bits, groupSize, grid });
        const { order: columns, inputScales } = parts;
        return affine(target, shape, { ...encoded, ...(columns && { order: columns }), ...(inputScales && { inputScales }) }, options);
      } finally {
        arranged.dispose();
      }
    },
  };
  return weight;
}

function checkParts(
  path: string,
  [out, width]: readonly [number, number],
  { codes, scales, zeros, order, inputScales }: AffineParts,
  { bits, groupSize }: { readonly bits: AffineBits; readonly groupSize: number },
): void {
  const groups = (out * width) / groupSize;
  expectLength(`${path}.qweight`, codes, packedBytes(out * width, bits));
  expectLength(`${path}.scales`, scales, groups);
  if (zeros !== undefined) {
    expectLength(`${path}.zeros`, zeros, groups);
    const most = 2 ** bits - 1;
    const wrong = zeros.findIndex((zero) => zero > most);
    if (wrong >= 0)
      throw new FormatError(`'${path}.zeros' holds ${zeros[wrong]} at ${wrong}, ${bits} bits go to ${most}`, { path, at: wrong });
  }
  if (order !== undefined) {
    expectLength(`${path}.order`, order, width);
    const seen = new Uint8Array(width);
    for (const column of order) if (column >= 0 && column < width) seen[column] = 1;
    const missing = seen.indexOf(0);
    if (missing >= 0) throw new FormatError(`'${path}.order' leaves out column ${missing}`, { path, column: missing });
  }
  if (inputScales !== undefined) {
    expectLength(`${path}.input_scales`, inputScales, width);
    const wrong = inputScales.findIndex((factor) => !(Math.abs(factor) > 0 && Math.abs(factor) < Infinity));
    if (wrong >= 0) {
      throw new FormatError(`'${path}.input_scales' holds ${inputScales[wrong]} at ${wrong}: factors are finite and not 0`, {
        path,
        at: wrong,
      });
    }
  }
}
