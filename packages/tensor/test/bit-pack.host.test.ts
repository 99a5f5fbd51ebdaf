import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ConfigError, FormatError } from '../src/errors.ts';
import { packBits, packedBytes, unpackBits } from '../src/bit-pack.ts';

const fields = fc.integer({ min: 1, max: 16 }).chain((bits) =>
  fc.record({
    bits: fc.constant(bits),
    order: fc.constantFrom('lsb' as const, 'msb' as const),
    values: fc.array(fc.integer({ min: 0, max: 2 ** bits - 1 }), { maxLength: 70 }),
  }),
);

/** The stream bit by bit, as the definition says. */
function slow(values: readonly number[], bits: number, order: 'lsb' | 'msb'): number[] {
  const bytes = Array.from({ length: packedBytes(values.length, bits) }, () => 0);
  for (const [k, value] of values.entries()) {
    for (let b = 0; b < bits; b++) {
      const at = k * bits + b;
      const bit = order === 'lsb' ? (value >> b) & 1 : (value >> (bits - 1 - b)) & 1;
      bytes[at >> 3]! |= bit << (order === 'lsb' ? at & 7 : 7 - (at & 7));
    }
  }
  return bytes;
}

describe('packed bits', () => {
  it('are the stream of the definition, for every width and order', () => {
    fc.assert(
      fc.property(fields, ({ bits, order, values }) => {
        expect([...packBits(values, { bits, order })]).toEqual(slow(values, bits, order));
      }),
    );
  });

  it('give the values back', () => {
    fc.assert(
      fc.property(fields, ({ bits, order, values }) => {
        expect([...unpackBits(packBits(values, { bits, order }), values.length, { bits, order })]).toEqual(values);
      }),
    );
  });

  it('of four bits are nibbles, low or high first; of three they straddle bytes', () => {
    const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
    expect(hex(packBits([1, 2, 3, 4, 5, 6, 7, 8], { bits: 4 }))).toBe('21436587');
    expect(hex(packBits([1, 2, 3, 4], { bits: 4, order: 'msb' }))).toBe('1234');
    expect(hex(packBits([7, 0, 7], { bits: 3 }))).toBe('c701');
    expect(hex(packBits([7, 0, 7], { bits: 3, order: 'msb' }))).toBe('e380');
  });

  it('refuse values that do not fit, too few bytes and odd widths', () => {
    expect(() => packBits([0, 8], { bits: 3 })).toThrow(ConfigError);
    expect(() => packBits([-1], { bits: 3 })).toThrow(ConfigError);
    expect(() => packBits([1.5], { bits: 3 })).toThrow(ConfigError);
    expect(() => unpackBits(new Uint8Array(1), 3, { bits: 3 })).toThrow(FormatError);
    expect(() => packBits([], { bits: 17 })).toThrow(ConfigError);
    expect(() => packBits([], { bits: 4, order: 'middle' as never })).toThrow(ConfigError);
  });
});
