/**
 * Philox4x32-10 (Salmon et al. 2011) and the distributions drawn from its words. Everything up to the last step is
 * integer arithmetic on 32 bits; the gaussian follows one fixed sequence of f32 operations, each rounded on its own, so
 * that every device which keeps the sequence gives the same bits.
 */
import type { Distribution, NoiseAttributes } from './noise.ts';

/** The high byte of an address's tag: no two distributions share words. */
export const distributionCodes: Readonly<Record<Distribution, number>> = {
  gaussian: 1,
  rademacher: 2,
  binomial64: 3,
  irwinhall12: 4,
  uniform: 5,
  mask: 0x10,
};

/** Word 3 of the counter: a distribution and the number of a sample. */
export const tagOf = (distribution: Distribution, sample: number): number => ((distributionCodes[distribution] << 24) | sample) >>> 0;

/** Words below it keep an entry of a mask. */
export const keepThreshold = (keep: number): number => Math.min(0xffff_ffff, Math.round(keep * 2 ** 32));

/** Elements drawn from one block of four words. */
export const elementsPerBlock: Readonly<Record<Distribution, number>> = {
  gaussian: 4,
  rademacher: 128,
  binomial64: 2,
  irwinhall12: 1,
  uniform: 4,
  mask: 4,
};

export interface PhiloxKey {
  /** Words 1, 2 and 3 of the counter; word 0 counts blocks. */
  readonly counter: readonly [number, number, number];
  readonly key: readonly [number, number];
}

/** Writes whole blocks, four words each, into `words` from its start; block b of the output is `firstBlock + b`. */
export function philoxBlocks(words: Uint32Array, blocks: number, firstBlock: number, { counter, key }: PhiloxKey): void {
  const [d1, d2, d3] = counter;
  for (let b = 0; b < blocks; b++) {
    let c0 = (firstBlock + b) | 0;
    let c1 = d1 | 0;
    let c2 = d2 | 0;
    let c3 = d3 | 0;
    let k0 = key[0] | 0;
    let k1 = key[1] | 0;
    for (let round = 0; round < 10; round++) {
      const high0 = highOfProduct(c0, 0xd251, 0x1f53);
      const high1 = highOfProduct(c2, 0xcd9e, 0x8d57);
      const low0 = Math.imul(c0, 0xd2511f53);
      const low1 = Math.imul(c2, 0xcd9e8d57);
      c0 = high1 ^ c1 ^ k0;
      c1 = low1;
      c2 = high0 ^ c3 ^ k1;
      c3 = low0;
      k0 = (k0 + 0x9e3779b9) | 0;
      k1 = (k1 + 0xbb67ae85) | 0;
    }
    words[4 * b] = c0;
    words[4 * b + 1] = c1;
    words[4 * b + 2] = c2;
    words[4 * b + 3] = c3;
  }
}

/** Upper 32 bits of a 32 × 32 bit product, in halves: a double would lose the low bits, and no sum here leaves 32 bits. */
function highOfProduct(a: number, high: number, low: number): number {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const middle = (Math.imul(a1, low) + (Math.imul(a0, low) >>> 16)) | 0;
  const carried = ((middle & 0xffff) + Math.imul(a0, high)) | 0;
  return (Math.imul(a1, high) + (middle >>> 16) + (carried >>> 16)) | 0;
}

const chunkBlocks = 1024;

/**
 * Fills `out` with elements of an address, in the exact f32 recipe that every device follows.
 * @param options `first`: the element that `out[0]` gets, so that shards and rows may be filled on their own
 */
export function fillNoise(out: Float32Array, attributes: NoiseAttributes, { first = 0 }: { first?: number } = {}): void {
  const { distribution, seedLow, seedHigh, step, id, sample, keep } = attributes;
  const per = elementsPerBlock[distribution];
  const address: PhiloxKey = {
    counter: [id, step, tagOf(distribution, sample)],
    key: [seedLow, seedHigh],
  };
  const element = elementOf(distribution, keep);
  const words = new Uint32Array(4 * chunkBlocks);
  const end = first + out.length;
  const lastBlock = Math.ceil(end / per);
  for (let block = Math.floor(first / per); block < lastBlock; block += chunkBlocks) {
    const blocks = Math.min(chunkBlocks, lastBlock - block);
    philoxBlocks(words, blocks, block, address);
    const base = block * per;
    const from = Math.max(first, base) - base;
    const to = Math.min(end, base + blocks * per) - base;
    element(words, out, from, to, base - first);
  }
}

/** Elements [from, to) of the words' blocks go to `out` at `shift` + element. */
type Fill = (words: Uint32Array, out: Float32Array, from: number, to: number, shift: number) => void;

function elementOf(distribution: Distribution, keep: number): Fill {
  if (distribution === 'mask') return fillMask(Math.min(0xffffffff, Math.round(keep * 2 ** 32)));
  return fills[distribution];
}

const fillMask =
  (threshold: number): Fill =>
  (words, out, from, to, shift) => {
    for (let e = from; e < to; e++) out[shift + e] = words[e]! < threshold ? 1 : 0;
  };

const fills: Readonly<Record<Exclude<Distribution, 'mask'>, Fill>> = {
  gaussian: (words, out, from, to, shift) => {
    for (let e = from & ~1; e < to; e += 2) {
      const radius = Math.fround(Math.sqrt(Math.fround(2 * negativeLog(words[e]!))));
      const angle = words[e + 1]! >>> 8;
      if (e >= from) out[shift + e] = radius * cosine(angle);
      if (e + 1 < to) out[shift + e + 1] = radius * sine(angle);
    }
  },
  rademacher: (words, out, from, to, shift) => {
    for (let e = from; e < to; e++) out[shift + e] = (words[e >>> 5]! >>> (e & 31)) & 1 ? 1 : -1;
  },
  binomial64: (words, out, from, to, shift) => {
    for (let e = from; e < to; e++) out[shift + e] = (bitCount(words[2 * e]!) + bitCount(words[2 * e + 1]!) - 32) / 4;
  },
  irwinhall12: (words, out, from, to, shift) => {
    for (let e = from; e < to; e++) {
      let total = 0;
      for (let w = 4 * e; w < 4 * e + 4; w++) total += (words[w]! & 1023) + ((words[w]! >>> 10) & 1023) + ((words[w]! >>> 20) & 1023);
      out[shift + e] = (2 * total - 12276) / 2048;
    }
  },
  // 24 bits, exact in f32, in [0, 1).
  uniform: (words, out, from, to, shift) => {
    for (let e = from; e < to; e++) out[shift + e] = (words[e]! >>> 8) * 2 ** -24;
  },
};

function bitCount(word: number): number {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

const { fround } = Math;
const ln2 = fround(Math.LN2);
const sqrt2 = fround(Math.SQRT2);
const quarterPi = fround(Math.PI / 4);
const [ninth, seventh, fifth, third] = [fround(1 / 9), fround(1 / 7), fround(1 / 5), fround(1 / 3)];
const [s9, s7, s5, s3] = [fround(1 / 362880), fround(1 / 5040), fround(1 / 120), fround(1 / 6)];
const [c8, c6, c4] = [fround(1 / 40320), fround(1 / 720), fround(1 / 24)];

/**
 * -ln u in f32 for the u in (0, 1) of a word: an odd number of 2⁻²⁴, so never 0 and never 1. Series of atanh on
 * [1/√2, √2]; libm is not used, since its last bits differ between devices.
 */
export function negativeLog(word: number): number {
  const odd = 2 * (word >>> 9) + 1;
  let exponent = 31 - Math.clz32(odd);
  let x = odd / (1 << exponent);
  if (x > sqrt2) {
    x *= 0.5;
    exponent += 1;
  }
  const s = fround(fround(x - 1) / fround(x + 1));
  const q = fround(s * s);
  let series = fround(fround(ninth * q) + seventh);
  series = fround(fround(series * q) + fifth);
  series = fround(fround(series * q) + third);
  series = fround(fround(series * q) + 1);
  return fround(fround((24 - exponent) * ln2) - fround(fround(2 * s) * series));
}

// Angles are 24 bits of a turn: the top three bits choose the octant, the rest lie in [0, π/4).
function reduced(angle: number): number {
  const x = (angle & 0x1fffff) * 2 ** -21;
  return fround(((angle >>> 21) & 1 ? 1 - x : x) * quarterPi);
}

function smallSine(angle: number): number {
  const y = reduced(angle);
  const q = fround(y * y);
  let series = fround(fround(q * s9) - s7);
  series = fround(fround(series * q) + s5);
  series = fround(fround(series * q) - s3);
  return fround(y * fround(fround(series * q) + 1));
}

function smallCosine(angle: number): number {
  const y = reduced(angle);
  const q = fround(y * y);
  let series = fround(fround(q * c8) - c6);
  series = fround(fround(series * q) + c4);
  series = fround(fround(series * q) - 0.5);
  return fround(fround(series * q) + 1);
}

function cosine(angle: number): number {
  const octant = angle >>> 21;
  const value = (octant + 1) & 2 ? smallSine(angle) : smallCosine(angle);
  return octant >= 2 && octant <= 5 ? -value : value;
}

function sine(angle: number): number {
  const octant = angle >>> 21;
  const value = (octant + 1) & 2 ? smallCosine(angle) : smallSine(angle);
  return octant >= 4 ? -value : value;
}
