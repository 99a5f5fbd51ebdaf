import { ConfigError, FormatError } from './errors.ts';

export interface BitPackOptions {
  /** Bits of one field, 1 to 16. */
  readonly bits: number;
  /**
   * 'lsb' (default): field k takes bits [k·bits, (k + 1)·bits) of the stream, bit b of which is bit b mod 8 of byte b / 8,
   * lowest first (GPTQ, AWQ, ggml). 'msb': the first field in the highest bits of the first byte (bitsandbytes).
   */
  readonly order?: 'lsb' | 'msb';
}

/** Bytes of `count` fields; the last one is filled up with zeros. */
export const packedBytes = (count: number, bits: number): number => Math.ceil((count * bits) / 8);

/** Unsigned fields of a few bits, one right after another. @throws ConfigError for a value that does not fit its field */
export function packBits(values: ArrayLike<number>, options: BitPackOptions): Uint8Array {
  const { bits, msb } = checked(options);
  const bytes = new Uint8Array(packedBytes(values.length, bits));
  const limit = 2 ** bits;
  let held = 0; // bits not written yet: at most 7 + 16
  let count = 0;
  let at = 0;
  for (let k = 0; k < values.length; k++) {
    const value = values[k]!;
    if (!(Number.isInteger(value) && value >= 0 && value < limit)) {
      throw new ConfigError(`packBits: value ${k} is ${value}, a field of ${bits} bits holds 0 to ${limit - 1}`, { index: k, value, bits });
    }
    held = msb ? (held << bits) | value : held | (value << count);
    count += bits;
    while (count >= 8) {
      count -= 8;
      bytes[at++] = msb ? held >>> count : held & 255;
      held = msb ? held & ((1 << count) - 1) : held >>> 8;
    }
  }
  if (count > 0) bytes[at] = msb ? held << (8 - count) : held;
  return bytes;
}

/** The fields again. @throws FormatError where the bytes are too few for `count` fields */
export function unpackBits(bytes: Uint8Array, count: number, options: BitPackOptions): Uint16Array {
  const { bits, msb } = checked(options);
  if (bytes.length < packedBytes(count, bits)) {
    throw new FormatError(`unpackBits: ${count} fields of ${bits} bits take ${packedBytes(count, bits)} bytes, got ${bytes.length}`, {
      expected: packedBytes(count, bits),
      given: bytes.length,
    });
  }
  const values = new Uint16Array(count);
  const mask = 2 ** bits - 1;
  let held = 0;
  let have = 0;
  let at = 0;
  for (let k = 0; k < count; k++) {
    while (have < bits) {
      held = msb ? ((held << 8) | bytes[at++]!) & 0xffffff : held | (bytes[at++]! << have);
      have += 8;
    }
    have -= bits;
    values[k] = msb ? (held >>> have) & mask : held & mask;
    held = msb ? held & ((1 << have) - 1) : held >>> bits;
  }
  return values;
}

function checked({ bits, order = 'lsb' }: BitPackOptions): { bits: number; msb: boolean } {
  if (!(Number.isInteger(bits) && bits >= 1 && bits <= 16)) throw new ConfigError(`a field has 1 to 16 bits, got ${bits}`, { bits });
  if (order !== 'lsb' && order !== 'msb') throw new ConfigError(`order must be 'lsb' or 'msb', got '${String(order)}'`, { order });
  return { bits, msb: order === 'msb' };
}
