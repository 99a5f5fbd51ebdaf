import { tensor1d, type Tensor1D } from '../tfjs.ts';

/** Bytes as the words of an int32 tensor (tfjs has no byte dtype: a Uint8Array would take four bytes an entry). The tail is padded with zeros. */
export function wordsOf(bytes: Uint8Array): Int32Array {
  if (bytes.byteLength % 4 === 0 && bytes.byteOffset % 4 === 0) return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const padded = new Uint8Array(Math.ceil(bytes.byteLength / 4) * 4);
  padded.set(bytes);
  return new Int32Array(padded.buffer);
}

export const packBytes = (bytes: Uint8Array): Tensor1D => tensor1d(wordsOf(bytes), 'int32');

/** The bytes of an int32 tensor's values, as they were packed. A view, not a copy. */
export const bytesOf = (words: ArrayBufferView, length: number = words.byteLength): Uint8Array =>
  new Uint8Array(words.buffer, words.byteOffset, length);
