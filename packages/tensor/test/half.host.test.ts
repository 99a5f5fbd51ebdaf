import { describe, expect, it } from 'vitest';
import { bfloatToFloat, floatToBfloat, floatToHalf, halfToFloat } from '../src/packed/half.ts';

const finiteHalves = Array.from({ length: 0x10000 }, (_, bits) => bits).filter((bits) => ((bits >> 10) & 31) !== 31);

describe('a half float', () => {
  it('survives the way to a number and back, for every bit pattern', () => {
    expect(finiteHalves.filter((bits) => floatToHalf(halfToFloat(bits)) !== bits)).toEqual([]);
    expect([0x7c00, 0xfc00].map(halfToFloat)).toEqual([Infinity, -Infinity]);
    expect(halfToFloat(0x7e00)).toBeNaN();
    expect([Infinity, -Infinity].map(floatToHalf)).toEqual([0x7c00, 0xfc00]);
    expect(halfToFloat(floatToHalf(NaN))).toBeNaN();
  });

  it('is the nearest one, and at a tie the even one', () => {
    const wrong: number[] = [];
    for (let bits = 0; bits < 0x7bff; bits++) {
      const [low, high] = [halfToFloat(bits), halfToFloat(bits + 1)];
      const middle = (low + high) / 2;
      const nudge = (high - low) / 2 ** 12;
      const found = [middle, middle - nudge, middle + nudge].map(floatToHalf);
      const expected = [bits & 1 ? bits + 1 : bits, bits, bits + 1];
      if (found.join() !== expected.join()) wrong.push(bits);
    }
    expect(wrong).toEqual([]);
    expect(floatToHalf(65519)).toBe(0x7bff);
    expect(floatToHalf(65520)).toBe(0x7c00);
    expect(floatToHalf(2 ** -25)).toBe(0);
  });
});

describe('a bfloat', () => {
  it('survives the way to a number and back, for every bit pattern', () => {
    const finite = Array.from({ length: 0x10000 }, (_, bits) => bits).filter((bits) => ((bits >> 7) & 255) !== 255);
    expect(finite.filter((bits) => floatToBfloat(bfloatToFloat(bits)) !== bits)).toEqual([]);
    expect([Infinity, -Infinity].map(floatToBfloat)).toEqual([0x7f80, 0xff80]);
    expect(bfloatToFloat(floatToBfloat(NaN))).toBeNaN();
  });

  it('rounds ties to even', () => {
    expect(floatToBfloat(1 + 2 ** -8)).toBe(0x3f80);
    expect(floatToBfloat(1 + 3 * 2 ** -8)).toBe(0x3f82);
    expect(floatToBfloat(1 + 2 ** -8 + 2 ** -16)).toBe(0x3f81);
  });
});
