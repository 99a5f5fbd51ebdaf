import { FormatError, bfloatToFloat, floatToHalf, halfToFloat, type RawTensor } from '@niwaki/tensor';
import type { TensorSource } from '@niwaki/weights';

/** A matrix of int32 words, read as unsigned. */
export interface WordMatrix {
  readonly words: Uint32Array;
  readonly rows: number;
  readonly columns: number;
}

/** @throws FormatError where the tensor is not an I32 matrix, before it is fetched */
export async function readWords(source: TensorSource, name: string): Promise<WordMatrix> {
  const { dtype, shape, bytes } = source.info(name);
  const [rows = 0, columns = 0] = shape;
  if (dtype !== 'I32' || shape.length !== 2 || rows * columns * 4 !== bytes || bytes === 0) {
    throw new FormatError(`'${name}' must be an I32 matrix, got ${dtype} [${shape}] of ${bytes} bytes`, { name, dtype, shape });
  }
  const raw = (await source.read(name)).bytes;
  return { words: new Uint32Array(raw.slice().buffer), rows, columns };
}

/** Scales as f32, of a tensor [rows, columns] in F16, BF16 or F32. */
export async function readScales(
  source: TensorSource,
  name: string,
  shape: readonly [rows: number, columns: number],
): Promise<Float32Array> {
  const info = source.info(name);
  const size = { F16: 2, BF16: 2, F32: 4 }[info.dtype];
  if (size === undefined || info.shape.join() !== shape.join() || info.bytes !== shape[0] * shape[1] * size) {
    throw new FormatError(`'${name}' must be F16, BF16 or F32 [${shape}], got ${info.dtype} [${info.shape}]`, {
      name,
      expected: shape,
      given: info.shape,
    });
  }
  const { buffer } = (await source.read(name)).bytes.slice();
  if (info.dtype === 'F32') return finite(new Float32Array(buffer), name);
  return finite(Float32Array.from(new Uint16Array(buffer), info.dtype === 'F16' ? halfToFloat : bfloatToFloat), name);
}

function finite(values: Float32Array, name: string): Float32Array {
  if (values.every(Number.isFinite)) return values;
  throw new FormatError(`'${name}' holds values that are not finite`, { name, help: 'The file is damaged: fetch it again.' });
}

export const rawOf = (dtype: string, shape: readonly number[], values: ArrayBufferView): RawTensor => ({
  dtype,
  shape,
  bytes: new Uint8Array(values.buffer as ArrayBuffer, values.byteOffset, values.byteLength),
});

/** Scales as F16 where that loses nothing, else as F32. */
export function writtenScales(scales: Float32Array, shape: readonly [rows: number, columns: number]): RawTensor {
  const halves = scales.every((scale) => halfToFloat(floatToHalf(scale)) === scale);
  return halves ? rawOf('F16', shape, Uint16Array.from(scales, floatToHalf)) : rawOf('F32', shape, scales);
}

/** Where the words of one bit-stream lie: word w at `first + w · step`. */
export interface Stream {
  readonly first: number;
  readonly step: number;
}

/** Field k of a stream of words, lowest bits first; one of 3 bits may end in the next word. */
export function fieldOf(words: Uint32Array, { first, step }: Stream, k: number, bits: number): number {
  const bit = k * bits;
  const word = Math.floor(bit / 32);
  const shift = bit % 32;
  let value = words[first + word * step]! >>> shift;
  if (shift + bits > 32) value |= words[first + (word + 1) * step]! << (32 - shift);
  return value & (2 ** bits - 1);
}

/** Writes field k into words that were 0. */
export function putField(words: Uint32Array, { first, step }: Stream, k: number, { bits, value }: { bits: number; value: number }): void {
  const bit = k * bits;
  const word = Math.floor(bit / 32);
  const shift = bit % 32;
  words[first + word * step]! |= value << shift;
  if (shift + bits > 32) words[first + (word + 1) * step]! |= value >>> (32 - shift);
}
