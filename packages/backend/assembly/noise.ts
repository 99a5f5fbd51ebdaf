/**
 * Addressed noise: Philox4x32-10 on four blocks at a time, one per lane, and the distributions of its words. Each f32
 * operation is rounded by itself, so that every element has the bits of packages/tensor/src/philox.ts, in every build.
 */
import { least } from './lanes';
import { transpose4 } from './packing';

const GAUSSIAN: i32 = 1;
const RADEMACHER: i32 = 2;
const BINOMIAL64: i32 = 3;
const IRWINHALL12: i32 = 4;
const UNIFORM: i32 = 5;

/** Elements that four blocks give. */
function groupElements(distribution: i32): i32 {
  if (distribution === RADEMACHER) return 512;
  if (distribution === BINOMIAL64) return 8;
  return distribution === IRWINHALL12 ? 4 : 16;
}

/** Upper halves of the products of unsigned lanes. */
// @ts-ignore: decorator
@inline
function high(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(i64x2.extmul_low_i32x4_u(a, b), i64x2.extmul_high_i32x4_u(a, b), 1, 3, 5, 7);
}

/** Bytes of scratch of `noise`: the words of a group, and a whole group's elements. */
export function noiseBytes(): i32 {
  return 128 + 512 * 4;
}

/**
 * Task t: elements [t · taskSize, ...) of an address; taskSize is a multiple of 512. `threshold` is that of a mask. With
 * `x`, of x plus the noise times the scalar at `factor` (0 and 0: the noise alone).
 */
export function noise(
  x: usize,
  factor: usize,
  out: usize,
  size: i32,
  distribution: i32,
  seedLow: u32,
  seedHigh: u32,
  id: u32,
  step: u32,
  tag: u32,
  threshold: u32,
  taskSize: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const elements = groupElements(distribution);
  const words = scratch;
  const spare = scratch + 128;
  const end = least(size, last * taskSize);
  for (let e = first * taskSize; e < end; e += elements) {
    blocks(4 * (<u32>e / elements), seedLow, seedHigh, id, step, tag, words);
    const to = out + ((<usize>e) << 2);
    const whole = e + elements <= end;
    const direct = whole && x === 0;
    draw(distribution, words, threshold, direct ? to : spare);
    if (direct) continue;
    const bytes = (<usize>(whole ? elements : end - e)) << 2;
    if (x === 0) memory.copy(to, spare, bytes);
    else addTimes(x + ((<usize>e) << 2), spare, factor, to, bytes);
  }
}

/** out = x + z · the scalar at `factor`, each rounded by itself. */
function addTimes(x: usize, z: usize, factor: usize, out: usize, bytes: usize): void {
  const f = v128.load32_splat(factor);
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(out + i, f32x4.add(v128.load(x + i), f32x4.mul(v128.load(z + i), f)));
  for (; i < bytes; i += 4) store<f32>(out + i, load<f32>(x + i) + load<f32>(z + i) * load<f32>(factor));
}

/** The 16 words of blocks [block, block + 4), in the order of their elements. */
export function blocks(block: u32, seedLow: u32, seedHigh: u32, id: u32, step: u32, tag: u32, words: usize): void {
  const m0 = i32x4.splat(0xd2511f53);
  const m1 = i32x4.splat(0xcd9e8d57);
  let c0 = i32x4.add(i32x4.splat(block), i32x4(0, 1, 2, 3));
  let c1 = i32x4.splat(id);
  let c2 = i32x4.splat(step);
  let c3 = i32x4.splat(tag);
  for (let round = 0; round < 10; round++) {
    const k0 = i32x4.splat(seedLow);
    const k1 = i32x4.splat(seedHigh);
    const high0 = high(c0, m0);
    const high1 = high(c2, m1);
    const low0 = i32x4.mul(c0, m0);
    const low1 = i32x4.mul(c2, m1);
    c0 = v128.xor(v128.xor(high1, c1), k0);
    c1 = low1;
    c2 = v128.xor(v128.xor(high0, c3), k1);
    c3 = low0;
    seedLow += 0x9e3779b9;
    seedHigh += 0xbb67ae85;
  }
  v128.store(words + 64, c0);
  v128.store(words + 64, c1, 16);
  v128.store(words + 64, c2, 32);
  v128.store(words + 64, c3, 48);
  transpose4(words + 64, words + 80, words + 96, words + 112, words, 16);
}

function draw(distribution: i32, words: usize, threshold: u32, out: usize): void {
  if (distribution === GAUSSIAN) return gaussian(words + 64, out);
  if (distribution === RADEMACHER) {
    for (let w = 0; w < 16; w++) {
      const word = load<u32>(words + (w << 2));
      const to = out + (w << 7);
      for (let bit = 0; bit < 32; bit++) store<f32>(to + (bit << 2), (word >> bit) & 1 ? 1 : -1);
    }
    return;
  }
  if (distribution === BINOMIAL64) {
    for (let e = 0; e < 8; e++) {
      const count = popcnt(load<u32>(words + (e << 3))) + popcnt(load<u32>(words + (e << 3), 4));
      store<f32>(out + (e << 2), <f32>((<i32>count) - 32) * <f32>0.25);
    }
    return;
  }
  if (distribution === IRWINHALL12) {
    for (let e = 0; e < 4; e++) {
      let total: u32 = 0;
      for (let w = 0; w < 4; w++) {
        const word = load<u32>(words + (e << 4) + (w << 2));
        total += (word & 1023) + ((word >> 10) & 1023) + ((word >> 20) & 1023);
      }
      store<f32>(out + (e << 2), <f32>(((<i32>total) << 1) - 12276) * <f32>0.00048828125);
    }
    return;
  }
  for (let w = 0; w < 64; w += 16) {
    const word = v128.load(words + w);
    if (distribution === UNIFORM) v128.store(out + w, f32x4.mul(f32x4.convert_i32x4_u(i32x4.shr_u(word, 8)), f32x4.splat(5.9604644775390625e-8)));
    else v128.store(out + w, v128.and(i32x4.lt_u(word, i32x4.splat(threshold)), f32x4.splat(1)));
  }
}

/** 16 gaussians out of the words by lane: words 0 and 2 are radii, 1 and 3 angles. */
function gaussian(lanes: usize, out: usize): void {
  pair(v128.load(lanes), v128.load(lanes, 16), lanes);
  pair(v128.load(lanes, 32), v128.load(lanes, 48), lanes + 32);
  transpose4(lanes, lanes + 16, lanes + 32, lanes + 48, out, 16);
}

/** Box-Muller with series of a fixed order: no library function, whose last bits would differ between devices. */
// @ts-ignore: decorator
@inline
function pair(radiusWord: v128, angleWord: v128, out: usize): void {
  const one = f32x4.splat(1);
  // -ln u for u = odd · 2^-24: odd = 2^n · x, and the series of atanh around 1.
  const odd = i32x4.add(i32x4.shl(i32x4.shr_u(radiusWord, 9), 1), i32x4.splat(1));
  const bits = f32x4.convert_i32x4_s(odd);
  let n = i32x4.sub(i32x4.shr_u(bits, 23), i32x4.splat(127));
  let x = v128.or(v128.and(bits, i32x4.splat(0x7fffff)), i32x4.splat(0x3f800000));
  const large = f32x4.gt(x, f32x4.splat(1.41421354));
  x = v128.bitselect(f32x4.mul(x, f32x4.splat(0.5)), x, large);
  n = i32x4.sub(n, large);
  const s = f32x4.div(f32x4.sub(x, one), f32x4.add(x, one));
  const t = f32x4.mul(s, s);
  let series = f32x4.add(f32x4.mul(f32x4.splat(<f32>(1.0 / 9.0)), t), f32x4.splat(<f32>(1.0 / 7.0)));
  series = f32x4.add(f32x4.mul(series, t), f32x4.splat(<f32>(1.0 / 5.0)));
  series = f32x4.add(f32x4.mul(series, t), f32x4.splat(<f32>(1.0 / 3.0)));
  series = f32x4.add(f32x4.mul(series, t), one);
  const whole = f32x4.mul(f32x4.convert_i32x4_s(i32x4.sub(i32x4.splat(24), n)), f32x4.splat(0.693147182));
  const negativeLog = f32x4.sub(whole, f32x4.mul(f32x4.mul(f32x4.splat(2), s), series));
  const radius = f32x4.sqrt(f32x4.mul(f32x4.splat(2), negativeLog));

  // 24 bits of a turn: the top three choose the octant, the rest lie in [0, pi / 4).
  const octant = i32x4.shr_u(angleWord, 29);
  const rest = f32x4.mul(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(angleWord, 8), i32x4.splat(0x1fffff))), f32x4.splat(4.76837158203125e-7));
  const isOdd = i32x4.eq(v128.and(octant, i32x4.splat(1)), i32x4.splat(1));
  const y = f32x4.mul(v128.bitselect(f32x4.sub(one, rest), rest, isOdd), f32x4.splat(0.785398185));
  const q = f32x4.mul(y, y);
  let sine = f32x4.sub(f32x4.mul(q, f32x4.splat(<f32>(1.0 / 362880.0))), f32x4.splat(<f32>(1.0 / 5040.0)));
  sine = f32x4.add(f32x4.mul(sine, q), f32x4.splat(<f32>(1.0 / 120.0)));
  sine = f32x4.sub(f32x4.mul(sine, q), f32x4.splat(<f32>(1.0 / 6.0)));
  sine = f32x4.mul(y, f32x4.add(f32x4.mul(sine, q), one));
  let cosine = f32x4.sub(f32x4.mul(q, f32x4.splat(<f32>(1.0 / 40320.0))), f32x4.splat(<f32>(1.0 / 720.0)));
  cosine = f32x4.add(f32x4.mul(cosine, q), f32x4.splat(<f32>(1.0 / 24.0)));
  cosine = f32x4.sub(f32x4.mul(cosine, q), f32x4.splat(0.5));
  cosine = f32x4.add(f32x4.mul(cosine, q), one);

  const swap = i32x4.eq(v128.and(i32x4.add(octant, i32x4.splat(1)), i32x4.splat(2)), i32x4.splat(2));
  const cosineSign = i32x4.shl(v128.and(i32x4.add(octant, i32x4.splat(2)), i32x4.splat(4)), 29);
  const sineSign = i32x4.shl(v128.and(octant, i32x4.splat(4)), 29);
  v128.store(out, f32x4.mul(radius, v128.xor(v128.bitselect(sine, cosine, swap), cosineSign)));
  v128.store(out, f32x4.mul(radius, v128.xor(v128.bitselect(cosine, sine, swap), sineSign)), 16);
}
