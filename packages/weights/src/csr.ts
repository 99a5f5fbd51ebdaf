import {
  add,
  cast,
  concat,
  cumsum,
  denseParameter,
  FormatError,
  gather,
  mul,
  ones,
  packBytes,
  reshape,
  slice,
  tensor1d,
  tidy,
  unpackFields,
  unsortedSegmentSum,
  zeros,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { expectLength } from './packed.ts';
import { atPositions, type Positions } from './positions.ts';
import type { Weight } from './weight.ts';

export interface CsrParts {
  /** A weight [1, entries], taken over. */
  readonly values: Weight;
  /** Column of each entry, rising within a row. */
  readonly columns: Int32Array;
  /** Where each row begins among the entries, and their count: [out + 1]. */
  readonly rows: Int32Array;
}

/**
 * A matrix as its entries that are not 0, row after row: 4 bytes a value (2 over F16 values), 2 a column (4 from 65537
 * columns on) and 4 a row. Smaller than dense f32 from a third of zeros on, than F16 with F16 values from a half on. A
 * product costs a dense one and the workspace of `atPositions`.
 *
 * Parts: those of the values, under `path.values.`, then `columns` and `rows`.
 * @param path module path
 * @throws FormatError for rows and columns that are no such matrix
 */
export function csr(path: string, shape: readonly [number, number], { values, columns, rows }: CsrParts): Weight {
  const [out, width] = shape;
  const count = values.shape[1];
  checkRows(path, shape, { columns, rows, count });
  const narrow = width <= 65536;
  const storedColumns = narrow
    ? denseParameter(`${path}.columns`, packBytes(new Uint8Array(Uint16Array.from(columns).buffer)), {
        role: 'index',
        shape: [count],
        file: { dtype: 'U16', shape: [count], bytes: 2 * count },
      })
    : denseParameter(`${path}.columns`, tensor1d(columns, 'int32'), { role: 'index' });
  const storedRows = denseParameter(`${path}.rows`, tensor1d(rows, 'int32'), { role: 'index' });

  const stretches = rowStretches(rows, shape);
  /** Flat index of every entry of a stretch, from its first row on: int32. */
  const flat = ({ from, to, first, end }: Stretch): Tensor1D => {
    const all = narrow ? unpackFields(storedColumns.read(), { bits: 16, count }) : cast(storedColumns.read(), 'float32');
    const column = slice(all as Tensor1D, [first], [end - first]);
    if (to - from === 1) return cast(column, 'int32') as Tensor1D;
    // How many rows begin at each entry; summed up, the row that an entry is in. One place more, for empty rows at the end.
    const begins = tensor1d(
      rows.subarray(from + 1, to).map((begin) => begin - first),
      'int32',
    );
    const steps = unsortedSegmentSum(ones([to - from - 1]), begins, end - first + 1);
    const row = slice(cumsum(steps, 0), [0], [end - first]);
    return cast(add(mul(row, width), column), 'int32') as Tensor1D;
  };
  const positions: Positions = {
    shape: [out, width],
    valuesShape: [1, count],
    expand: (given) =>
      tidy(() => {
        const tiles = stretches.map((stretch) => {
          const { from, to, first, end } = stretch;
          if (end === first) return zeros([(to - from) * width]);
          const own = reshape(slice(given, [0, first], [1, end - first]), [end - first]);
          return unsortedSegmentSum(own, flat(stretch), (to - from) * width);
        });
        return reshape(tiles.length === 1 ? tiles[0]! : concat(tiles), [out, width]) as Tensor2D;
      }),
    pick: (dense) =>
      tidy(() => {
        const own = stretches
          .filter(({ first, end }) => end > first)
          .map((stretch) => {
            const { from, to } = stretch;
            return gather(reshape(slice(dense, [from, 0], [to - from, width]), [(to - from) * width]), flat(stretch));
          });
        return reshape(own.length === 1 ? own[0]! : concat(own), [1, count]) as Tensor2D;
      }),
  };
  return atPositions(path, positions, {
    kind: 'csr',
    options: { entries: count, values: { kind: values.kind, options: values.options } },
    values,
    index: { columns: storedColumns, rows: storedRows },
    again: (next, target) => csr(target, shape, { values: next, columns, rows }),
  });
}

interface Stretch {
  /** Rows [from, to) and their entries [first, end). */
  readonly from: number;
  readonly to: number;
  readonly first: number;
  readonly end: number;
}

/** Entries of the matrix that are addressed at once: f32 counts them exactly, and WebGPU's tfjs has no other arithmetic. */
const addressed = 2 ** 24;

function rowStretches(rows: Int32Array, [out, width]: readonly [number, number]): readonly Stretch[] {
  const step = Math.max(1, Math.floor(addressed / width));
  return Array.from({ length: Math.ceil(out / step) }, (_, i) => {
    const [from, to] = [i * step, Math.min(out, (i + 1) * step)];
    return { from, to, first: rows[from]!, end: rows[to]! };
  });
}

function checkRows(
  path: string,
  [out, width]: readonly [number, number],
  { columns, rows, count }: { readonly columns: Int32Array; readonly rows: Int32Array; readonly count: number },
): void {
  expectLength(`${path}.columns`, columns, count);
  expectLength(`${path}.rows`, rows, out + 1);
  if (count === 0) throw new FormatError(`'${path}' stores no entry`, { path });
  if (rows[0] !== 0 || rows[out] !== count) {
    throw new FormatError(`'${path}.rows' goes from ${rows[0]} to ${rows[out]}, the entries from 0 to ${count}`, { path, count });
  }
  for (let row = 0; row < out; row++) {
    const [from, to] = [rows[row]!, rows[row + 1]!];
    if (to < from) throw new FormatError(`'${path}.rows' falls from ${from} to ${to} at row ${row}`, { path, row });
    for (let k = from; k < to; k++) {
      const column = columns[k]!;
      if (column >= 0 && column < width && (k === from || column > columns[k - 1]!)) continue;
      throw new FormatError(`'${path}.columns' holds ${column} at ${k}: columns rise within a row and lie below ${width}`, {
        path,
        at: k,
        column,
      });
    }
  }
}

/** Values, columns and row starts of a masked matrix. @param kept one byte an entry; where it is absent, what is not 0 */
export function packCsr(
  dense: ArrayLike<number>,
  [out, width]: readonly [number, number],
  kept?: ArrayLike<number>,
): { readonly values: Float32Array; readonly columns: Int32Array; readonly rows: Int32Array } {
  const rows = new Int32Array(out + 1);
  const holds = (e: number): boolean => (kept === undefined ? dense[e] !== 0 : kept[e] === 1);
  for (let row = 0; row < out; row++) {
    let count = rows[row]!;
    for (let column = 0; column < width; column++) if (holds(row * width + column)) count++;
    rows[row + 1] = count;
  }
  const values = new Float32Array(rows[out]!);
  const columns = new Int32Array(rows[out]!);
  let k = 0;
  for (let e = 0; e < out * width; e++) {
    if (!holds(e)) continue;
    values[k] = dense[e]!;
    columns[k++] = e % width;
  }
  return { values, columns, rows };
}
