import { FormatError } from '@niwaki/tensor';
import type { ByteSource, ReadOptions } from '../bytes/byte-source.ts';
import type { GgufScalar, GgufScalarType } from './types.ts';

/** Reads a file from its start through a window that grows by slices; nothing is allocated that the file cannot hold. */
export interface Cursor {
  /** Position in the file. */
  readonly position: number;
  /** Bytes of the file from here on. */
  readonly rest: number;
  /** Makes `bytes` from here readable without waiting; `what` names them if the file ends before. */
  need(bytes: number, what: string): Promise<void>;
  /** Whether `bytes` from here are there already: a loop over many small values awaits only where this is false. */
  has(bytes: number): boolean;
  scalar(type: Exclude<GgufScalarType, 'string'>): GgufScalar;
  /** A 64-bit count or length as a number. */
  count(what: string): number;
  text(bytes: number, what: string): string;
}

export function createCursor(source: ByteSource, sliceBytes: number, options: ReadOptions): Cursor {
  let window: Uint8Array = new Uint8Array(0);
  let view = new DataView(window.buffer);
  let start = 0; // of the window in the file
  let at = 0; // within the window
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const fail = (what: string, fields: Record<string, unknown> = {}): FormatError =>
    new FormatError(`${source.name}: ${what}`, { file: source.name, position: start + at, ...fields });

  const take = (bytes: number): number => {
    const here = at;
    at += bytes;
    return here;
  };
  const cursor: Cursor = {
    get position() {
      return start + at;
    },
    get rest() {
      return source.size - start - at;
    },
    has: (bytes) => at + bytes <= window.byteLength,
    need: async (bytes, what) => {
      if (cursor.has(bytes)) return;
      if (bytes > cursor.rest) {
        throw fail(`the file ends within ${what}: ${bytes} bytes at ${start + at}, the file has ${source.size}`, {
          size: source.size,
          help: 'The download was cut off, or the file is damaged: fetch it again.',
        });
      }
      const left = window.subarray(at);
      const more = await source.read(
        start + at + left.byteLength,
        Math.min(Math.max(bytes - left.byteLength, sliceBytes), cursor.rest - left.byteLength),
        options,
      );
      start += at;
      at = 0;
      window = left.byteLength === 0 ? more : joined(left, more);
      view = new DataView(window.buffer, window.byteOffset, window.byteLength);
    },
    scalar: (type) => {
      switch (type) {
        case 'u8':
          return view.getUint8(take(1));
        case 'i8':
          return view.getInt8(take(1));
        case 'u16':
          return view.getUint16(take(2), true);
        case 'i16':
          return view.getInt16(take(2), true);
        case 'u32':
          return view.getUint32(take(4), true);
        case 'i32':
          return view.getInt32(take(4), true);
        case 'f32':
          return view.getFloat32(take(4), true);
        case 'f64':
          return view.getFloat64(take(8), true);
        case 'u64':
          return narrow(view.getBigUint64(take(8), true));
        case 'i64':
          return narrow(view.getBigInt64(take(8), true));
        case 'bool': {
          const byte = view.getUint8(take(1));
          if (byte > 1) throw fail(`a truth value of ${byte}`);
          return byte === 1;
        }
      }
    },
    count: (what) => {
      const low = view.getUint32(at, true);
      const value = view.getUint32(at + 4, true) * 2 ** 32 + low;
      if (!Number.isSafeInteger(value)) throw fail(`${what} is ${view.getBigUint64(at, true)}, more than any file holds`);
      at += 8;
      return value;
    },
    text: (bytes, what) => {
      const here = take(bytes);
      try {
        return decoder.decode(window.subarray(here, here + bytes));
      } catch (cause) {
        throw fail(`${what} is not UTF-8`, { cause });
      }
    },
  };
  return cursor;
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.byteLength + b.byteLength);
  both.set(a);
  both.set(b, a.byteLength);
  return both;
}

const narrow = (wide: bigint): number | bigint => (wide >= -9007199254740991n && wide <= 9007199254740991n ? Number(wide) : wide);
