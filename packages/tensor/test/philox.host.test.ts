import { describe, expect, it } from 'vitest';
import { assignIds, nameId, type Distribution, type NoiseAttributes } from '../src/noise.ts';
import { fillNoise, negativeLog, philoxBlocks } from '../src/philox.ts';

const name = 'model.layers.0.self_attn.q_proj.weight';

const address = (distribution: Distribution, change: Partial<NoiseAttributes> = {}): NoiseAttributes => ({
  seedLow: 42,
  seedHigh: 0,
  step: 7,
  id: nameId(name),
  sample: 0,
  distribution,
  length: 0,
  keep: 0.5,
  ...change,
});

function draw(distribution: Distribution, length: number, change: Partial<NoiseAttributes> = {}): Float32Array {
  const out = new Float32Array(length);
  fillNoise(out, address(distribution, change));
  return out;
}

const hex = (words: ArrayLike<number>): string => Array.from(words, (w) => (w >>> 0).toString(16).padStart(8, '0')).join(' ');
const bits = (values: Float32Array): string => hex(new Uint32Array(values.buffer));

function block(first: number, counter: [number, number, number], key: [number, number]): string {
  const words = new Uint32Array(4);
  philoxBlocks(words, 1, first, { counter, key });
  return hex(words);
}

function correlation(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += a[i]! * b[i]!;
    aa += a[i]! ** 2;
    bb += b[i]! ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}

describe('philox4x32-10', () => {
  it('gives the three official answers', () => {
    expect(block(0, [0, 0, 0], [0, 0])).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8');
    expect(block(0xffffffff, [0xffffffff, 0xffffffff, 0xffffffff], [0xffffffff, 0xffffffff])).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd');
    expect(block(0x243f6a88, [0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])).toBe('d16cfe09 94fdcceb 5001e420 24126ea1');
  });

  it('gives the words of the golden addresses', () => {
    const at = (code: number): string => block(0, [nameId(name), 7, code << 24], [42, 0]);
    expect(at(1)).toBe('1add5947 96178d6c 83eefe98 7ebfbbeb');
    expect(at(2)).toBe('6fd98e02 f8900ab0 e626fcff 635f5f1d');
    expect(at(3)).toBe('d749a00f 8c5b98a2 c0ef3881 443b67cf');
    expect(at(4)).toBe('5c01abc9 3e59552e bb484da6 db59994c');
  });
});

describe('names', () => {
  it('hash by FNV-1a', () => {
    expect(hex(['', 'a', 'foobar', name].map(nameId))).toBe('811c9dc5 e40c292c bf9cf968 1af1383b');
  });

  it('that collide get distinct ids, the same whatever the order of registration', () => {
    const names = ['costarring', 'liquid', 'declinate', 'macallums']; // two known pairs of FNV-1a collisions
    expect(nameId('costarring')).toBe(nameId('liquid'));
    expect(nameId('declinate')).toBe(nameId('macallums'));
    const ids = assignIds(names);
    expect(new Set(ids.values()).size).toBe(4);
    expect(assignIds(['macallums', 'declinate', 'liquid', 'costarring'])).toEqual(ids);
    expect(ids.get('costarring')).toBe(nameId('costarring'));
    expect(ids.get('liquid')).toBe(nameId('costarring') + 1);
  });
});

describe('distributions at the golden address', () => {
  it('give the first elements bit for bit', () => {
    expect([...draw('binomial64', 8)]).toEqual([-0.75, 0, -0.25, 2, 0.75, -0.25, 2.25, -0.5]);
    expect([...draw('rademacher', 8)]).toEqual([-1, 1, -1, -1, -1, -1, -1, -1]);
    expect([...draw('irwinhall12', 8)]).toEqual([
      0.5517578125, 2.7001953125, 0.4736328125, -0.158203125, 0.2119140625, -1.2734375, 0.318359375, 0.92578125,
    ]);
    expect(bits(draw('gaussian', 8))).toBe('bfe8ced8 bf8c4156 bf934fcd 3d10ca4f 4016adde 3f4a17c4 3fcebd3c bfb21a70');
  });

  it('have the exact sums over 2^20 elements', () => {
    const sum = (values: Float32Array): number => values.reduce((total, value) => total + value, 0);
    expect(sum(draw('rademacher', 2 ** 20))).toBe(-130);
    const binomial = draw('binomial64', 2 ** 20);
    expect(sum(binomial)).toBe(2232.75);
    expect(sum(binomial.map((value) => value * value))).toBe(1049416.4375);
    expect(sum(draw('irwinhall12', 2 ** 20))).toBe(332.697265625);
  });

  it('have the moments of the gaussian, with no value beyond sqrt(48 ln 2)', () => {
    const values = draw('gaussian', 2 ** 20);
    let [mean, min, max] = [0, Infinity, -Infinity];
    for (const value of values) {
      mean += value / values.length;
      min = Math.min(min, value);
      max = Math.max(max, value);
    }
    let [second, fourth] = [0, 0];
    for (const value of values) {
      second += (value - mean) ** 2 / values.length;
      fourth += (value - mean) ** 4 / values.length;
    }
    expect(mean).toBeCloseTo(-9.089e-5, 7);
    expect(second).toBeCloseTo(0.99719, 5);
    expect(fourth).toBeCloseTo(2.9802, 4);
    expect(min).toBeCloseTo(-4.6769, 4);
    expect(max).toBeCloseTo(4.9159, 4);
  });

  it('stay within 5.4e-7 of the double-precision gaussian', () => {
    const length = 2 ** 16;
    const values = draw('gaussian', length);
    const words = new Uint32Array(length);
    philoxBlocks(words, length / 4, 0, { counter: [nameId(name), 7, 1 << 24], key: [42, 0] });
    let worst = 0;
    for (let e = 0; e < length; e += 2) {
      const radius = Math.sqrt(-2 * Math.log((2 * (words[e]! >>> 9) + 1) * 2 ** -24));
      const angle = (2 * Math.PI * (words[e + 1]! >>> 8)) / 2 ** 24;
      worst = Math.max(worst, Math.abs(values[e]! - radius * Math.cos(angle)), Math.abs(values[e + 1]! - radius * Math.sin(angle)));
    }
    expect(worst).toBeLessThan(5.4e-7);
  });

  it('are uniform on [0, 1) in steps of 2^-24, one word an element', () => {
    const words = new Uint32Array(8);
    philoxBlocks(words, 2, 0, { counter: [nameId(name), 7, 5 << 24], key: [42, 0] });
    expect([...draw('uniform', 8)]).toEqual([...words].map((word) => (word >>> 8) / 2 ** 24));
    const many = draw('uniform', 2 ** 18);
    expect(many.every((value) => value >= 0 && value < 1)).toBe(true);
    const mean = many.reduce((total, value) => total + value / many.length, 0);
    expect(Math.abs(mean - 0.5)).toBeLessThan(5 * Math.sqrt(1 / 12 / many.length));
  });

  it('keep a mask entry with the given probability', () => {
    for (const keep of [0, 0.1, 0.5, 0.9, 1]) {
      const mask = draw('mask', 2 ** 16, { keep });
      const kept = mask.reduce((total, value) => total + value, 0) / mask.length;
      expect(Math.abs(kept - keep)).toBeLessThanOrEqual(5 * Math.sqrt((keep * (1 - keep)) / mask.length));
    }
  });
});

describe('the radius', () => {
  it('is exact at both ends of the word', () => {
    expect(bits(Float32Array.of(negativeLog(0), negativeLog(0xffffffff)))).toBe('41851592 33800000');
  });

  it('never comes from a logarithm below 2^-24', () => {
    let least = Infinity;
    for (let word = 0; word < 2 ** 23; word++) least = Math.min(least, negativeLog(word * 512));
    expect(least).toBeGreaterThanOrEqual(2 ** -24);
  });
});

describe('addresses', () => {
  const all: Distribution[] = ['gaussian', 'rademacher', 'binomial64', 'irwinhall12', 'uniform', 'mask'];

  it('give the same bits whole, by rows in reverse and by shards', () => {
    const [rows, width] = [1000, 37];
    for (const distribution of all) {
      const whole = draw(distribution, rows * width);
      const byRows = new Float32Array(rows * width);
      for (let row = rows - 1; row >= 0; row--) {
        fillNoise(byRows.subarray(row * width, (row + 1) * width), address(distribution), { first: row * width });
      }
      expect(bits(byRows)).toBe(bits(whole));
      const sharded = new Float32Array(rows * width);
      fillNoise(sharded.subarray(17_321), address(distribution), { first: 17_321 });
      fillNoise(sharded.subarray(0, 17_321), address(distribution));
      expect(bits(sharded)).toBe(bits(whole));
    }
  });

  it('write nothing beyond the length', () => {
    for (const distribution of all) {
      for (const length of [1, 3, 5]) {
        const out = new Float32Array(8).fill(99);
        fillNoise(out.subarray(0, length), address(distribution));
        expect([...out.subarray(length)]).toEqual(Array.from({ length: 8 - length }, () => 99));
        expect([...out.subarray(0, length)]).toEqual([...draw(distribution, length)]);
      }
    }
  });

  it('that differ in step, sample, seed, name or distribution are uncorrelated', () => {
    const length = 2 ** 20;
    const base = draw('gaussian', length);
    for (const change of [{ step: 8 }, { sample: 1 }, { seedLow: 43 }, { seedHigh: 1 }, { id: 5 }]) {
      expect(Math.abs(correlation(base, draw('gaussian', length, change)))).toBeLessThan(0.005);
    }
    expect(Math.abs(correlation(base, draw('binomial64', length)))).toBeLessThan(0.005);
  });

  it('at step 0 and seed 0 are ordinary', () => {
    const values = draw('gaussian', 64, { step: 0, seedLow: 0, id: 0 });
    expect(new Set(values).size).toBe(64);
  });
});
