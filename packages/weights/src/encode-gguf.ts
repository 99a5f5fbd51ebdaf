import { floatToBfloat, floatToHalf, ggufBlocks, NumericError, ShapeError, type GgufFormat } from '@niwaki/tensor';
import { notFinite } from './packed.ts';
import { forEachRun, type RowReader } from './rows.ts';

/** GGUF formats that we write; the others are read only. */
export type GgufEncoded = 'F16' | 'BF16' | 'Q4_0' | 'Q4_1' | 'Q8_0';

/** Bytes of one row of `width` entries; throws where blocks would straddle rows. */
export function ggufRowBytes(format: GgufFormat, width: number, path: string): number {
  const { elements, bytes } = ggufBlocks[format];
  if (width % elements === 0) return (width / elements) * bytes;
  throw new ShapeError(`'${path}': ${format} stores blocks of ${elements} entries along a row, got rows of ${width}`, {
    path,
    format,
    width,
    help: 'Choose a format of smaller blocks, such as Q8_0 or F16.',
  });
}

/**
 * Quantizes rows into GGUF blocks by the reference quantizers of ggml (ggml-quants.c), from rows that are read once.
 * @param name of the matrix, for errors: a value or scale that is not finite throws NumericError
 */
export async function encodeGgufBlocks(
  name: string,
  shape: readonly [out: number, in_: number],
  rows: RowReader,
  format: GgufEncoded,
): Promise<Uint8Array> {
  const { elements, bytes } = ggufBlocks[format];
  const blocks = new Uint8Array(shape[0] * ggufRowBytes(format, shape[1], name));
  const view = new DataView(blocks.buffer);
  const encode = encoders[format];
  await forEachRun(shape, rows, (values, first) => {
    for (let i = 0; i < values.length; i++) {
      if (!(Math.abs(values[i]!) < Infinity)) {
        throw notFinite(name, values[i]!, [Math.floor((first + i) / shape[1]), (first + i) % shape[1]]);
      }
    }
    for (let i = 0; i < values.length; i += elements) {
      const at = ((first + i) / elements) * bytes;
      encode(values, i, view, at);
      if (format !== 'BF16' && (view.getUint16(at, true) & 0x7c00) === 0x7c00) throw tooLarge(name, format, first + i);
    }
  });
  return blocks;
}

export const isGgufEncoded = (format: GgufFormat): format is GgufEncoded => Object.hasOwn(encoders, format);

const tooLarge = (name: string, format: GgufFormat, element: number): NumericError =>
  new NumericError(`'${name}' holds values near entry ${element} whose scale does not fit a half float`, {
    path: name,
    format,
    element,
    help: 'Store this matrix as BF16 or F32.',
  });

const { fround } = Math;

/** Writes the block of `values` from `i` at byte `at`. */
type Encode = (values: Float32Array, i: number, view: DataView, at: number) => void;

const reciprocal = (d: number): number => (d === 0 ? 0 : fround(1 / d));

const encoders: Readonly<Record<GgufEncoded, Encode>> = {
  F16: (values, i, view, at) => view.setUint16(at, floatToHalf(values[i]!), true),
  BF16: (values, i, view, at) => view.setUint16(at, floatToBfloat(values[i]!), true),
  Q4_0: (values, i, view, at) => {
    let extreme = 0;
    for (let e = i; e < i + 32; e++) if (Math.abs(values[e]!) > Math.abs(extreme)) extreme = values[e]!;
    const d = extreme / -8;
    // The codes divide by the scale as it was before it was rounded to half.
    const id = reciprocal(d);
    view.setUint16(at, floatToHalf(d), true);
    nibbles(view, at + 2, (e) => Math.min(15, Math.trunc(fround(fround(values[i + e]! * id) + 8.5))));
  },
  Q4_1: (values, i, view, at) => {
    let [least, most] = [Infinity, -Infinity];
    for (let e = i; e < i + 32; e++) {
      least = Math.min(least, values[e]!);
      most = Math.max(most, values[e]!);
    }
    const d = fround(fround(most - least) / 15);
    const id = reciprocal(d);
    view.setUint16(at, floatToHalf(d), true);
    view.setUint16(at + 2, floatToHalf(least), true);
    nibbles(view, at + 4, (e) => Math.min(15, Math.trunc(fround(fround(fround(values[i + e]! - least) * id) + 0.5))));
  },
  Q8_0: (values, i, view, at) => {
    let largest = 0;
    for (let e = i; e < i + 32; e++) largest = Math.max(largest, Math.abs(values[e]!));
    const d = fround(largest / 127);
    const id = reciprocal(d);
    view.setUint16(at, floatToHalf(d), true);
    for (let e = 0; e < 32; e++) view.setInt8(at + 2 + e, awayFromZero(fround(values[i + e]! * id)));
  },
};

/** Entries e and e + 16 share a byte, the first in its low half. */
function nibbles(view: DataView, at: number, code: (e: number) => number): void {
  for (let e = 0; e < 16; e++) view.setUint8(at + e, code(e) | (code(e + 16) << 4));
}

/** Nearest integer, halves away from zero, as C's roundf. */
const awayFromZero = (value: number): number => Math.sign(value) * Math.floor(Math.abs(value) + 0.5);
