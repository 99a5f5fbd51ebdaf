import { codeBoundaries, dynamicMap, NumericError } from '@niwaki/tensor';

/** How blocks are coded; see `quantizeBlocks`. */
export interface BlockCodeAttributes {
  readonly signed: boolean;
  readonly blockSize: number;
}

/**
 * What the host finds a code by: the leading bits of a number in [-1, 1], its sign first, are a row, and a row holds one
 * boundary between codes at most.
 */
interface Rows {
  /** The code at the row's end that is nearer to 0. */
  readonly base: Uint8Array;
  /** Magnitude from which on it is the next code; 2 where there is none. */
  readonly boundary: Float32Array;
}

/** Bits of an f32 that are dropped: sign, exponent and 8 bits of the fraction stay, 32,513 rows from 0 to 1. */
const dropped = 15;
const rowCount = (0x3f800000 >>> dropped) + 1;
const negativeFrom = 0x80000000 >>> dropped;

/** Codes and scales of values: the same bits as the op's reference, without its roots. */
export function encodeBlocks(
  values: Float32Array,
  codes: Uint8Array,
  scales: Float32Array,
  { signed, blockSize, guard }: BlockCodeAttributes & { readonly guard: boolean },
): void {
  const { base, boundary } = rowsOf({ signed, guard });
  const quotients = new Float32Array(Math.min(blockSize, values.length));
  const bits = new Int32Array(quotients.buffer);
  for (let block = 0; block < scales.length; block++) {
    const from = block * blockSize;
    const count = Math.min(values.length - from, blockSize);
    let scale = 0;
    for (let i = 0; i < count; i++) scale = Math.max(scale, Math.abs(values[from + i]!));
    scales[block] = scale;
    const divisor = scale === 0 ? 1 : scale;
    for (let i = 0; i < count; i++) quotients[i] = values[from + i]! / divisor;
    // No branch on the sign, which is as good as random.
    for (let i = 0; i < count; i++) {
      const row = bits[i]! >>> dropped;
      const beyond = Math.abs(quotients[i]!) > boundary[row]! ? 1 : 0;
      codes[from + i] = base[row]! + beyond * (1 - 2 * (row >>> 16));
    }
  }
  codes.fill(base[0]!, values.length);
}

/** The values that codes stand for. */
export function decodeBlocks(
  codes: Uint8Array,
  scales: Float32Array,
  values: Float32Array,
  { signed, blockSize }: BlockCodeAttributes,
): void {
  const map = dynamicMap({ signed });
  for (let block = 0; block < scales.length; block++) {
    const scale = scales[block]!;
    const to = Math.min(values.length, (block + 1) * blockSize);
    for (let i = block * blockSize; i < to; i++) values[i] = map[codes[i]!]! * scale;
  }
}

/** Constants, made when first asked for. */
const made = new Map<string, Rows>();

function rowsOf(options: { signed: boolean; guard: boolean }): Rows {
  const key = `${options.signed} ${options.guard}`;
  const known = made.get(key);
  if (known !== undefined) return known;
  const { zero, positive, negative } = codeBoundaries(options);
  const rows: Rows = {
    base: new Uint8Array(negativeFrom + rowCount).fill(zero),
    boundary: new Float32Array(negativeFrom + rowCount).fill(2),
  };
  fill(rows, positive, { from: 0, zero, direction: 1 });
  // An unsigned map meets -0 only.
  if (options.signed) fill(rows, negative, { from: negativeFrom, zero, direction: -1 });
  made.set(key, rows);
  return rows;
}

function fill(rows: Rows, boundaries: Float32Array, { from, zero, direction }: { from: number; zero: number; direction: 1 | -1 }): void {
  const ends = new Float32Array(Int32Array.from({ length: rowCount }, (_, row) => (row + 1) << dropped).buffer);
  for (let row = 0, below = 0; row < rowCount; row++) {
    rows.base[from + row] = zero + direction * below;
    if (!(boundaries[below]! < ends[row]!)) continue;
    rows.boundary[from + row] = boundaries[below]!;
    below++;
    if (boundaries[below]! < ends[row]!) throw new NumericError(`internal: row ${row} holds two boundaries between codes`, { row });
  }
}

/**
 * The same search for kernels on bits: magnitudes below 2^-23 share the first row, since the smallest boundary between codes
 * is above it; NaN and what is above 1 the last.
 */
export const codeRows: number = 1 + 23 * 256 + 1;
const rowsBefore = (0x34000000 >>> dropped) - 1;

/** For each row, of negative numbers after those of positive ones where the map is signed: its boundary, and the codes up to it and beyond it. */
interface CodeTable {
  readonly map: Float32Array;
  readonly boundaries: Float32Array;
  readonly codes: Uint8Array;
}

export function codeTable(options: { signed: boolean; guard: boolean }): CodeTable {
  const { base, boundary } = rowsOf(options);
  const halves = options.signed ? [0, negativeFrom] : [0];
  const boundaries = new Float32Array(halves.length * codeRows);
  const codes = new Uint8Array(2 * boundaries.length);
  for (const [half, from] of halves.entries()) {
    for (let row = 0; row < codeRows; row++) {
      const [source, target] = [from + (row === 0 ? 0 : row + rowsBefore), half * codeRows + row];
      boundaries[target] = boundary[source]!;
      codes[2 * target] = base[source]!;
      codes[2 * target + 1] = base[source]! + 1 - 2 * half;
    }
  }
  return { map: dynamicMap(options), boundaries, codes };
}
