import type { Distribution } from '@niwaki/tensor';
import { lanes, program, type Program } from '../program.ts';

// Upper half of a 32 × 32 bit product out of 16-bit halves: WGSL has no wider integers.
/** `philox(block)`: four words, by the uniforms seedLow, seedHigh, step, id and purpose. */
export const philox: string = `
fn highOfProduct(a: u32, b: u32) -> u32 {
  let a0 = a & 0xffffu; let a1 = a >> 16u;
  let b0 = b & 0xffffu; let b1 = b >> 16u;
  let middle = a1 * b0 + ((a0 * b0) >> 16u);
  let carried = (middle & 0xffffu) + a0 * b1;
  return a1 * b1 + (middle >> 16u) + (carried >> 16u);
}
fn philox(block: u32) -> vec4<u32> {
  var c = vec4<u32>(block, u.id, u.step, u.purpose);
  var key = vec2<u32>(u.seedLow, u.seedHigh);
  for (var round = 0u; round < 10u; round++) {
    let high0 = highOfProduct(c.x, 0xd2511f53u); let low0 = c.x * 0xd2511f53u;
    let high1 = highOfProduct(c.z, 0xcd9e8d57u); let low1 = c.z * 0xcd9e8d57u;
    c = vec4<u32>(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
    key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}`;

// The recipe of the addressed gaussian, operation by operation; WGSL's own log, sin and cos are too coarse for it.
const gaussian = `
const sqrt2 = bitcast<f32>(0x3fb504f3u);
const ln2 = bitcast<f32>(0x3f317218u);
const quarterPi = bitcast<f32>(0x3f490fdbu);
fn negativeLog(word: u32) -> f32 {
  let odd = 2u * (word >> 9u) + 1u;
  var exponent = firstLeadingBit(odd);
  var x = f32(odd) / f32(1u << exponent);
  if (x > sqrt2) { x *= 0.5; exponent += 1u; }
  let s = (x - 1.0) / (x + 1.0);
  let q = s * s;
  let series = ((((1.0 / 9.0) * q + (1.0 / 7.0)) * q + 0.2) * q + (1.0 / 3.0)) * q + 1.0;
  return f32(24u - exponent) * ln2 - (2.0 * s) * series;
}
fn cosineAndSine(angle: u32) -> vec2<f32> {
  let octant = angle >> 21u;
  var x = f32(angle & 0x1fffffu) * exp2(-21.0);
  if ((octant & 1u) == 1u) { x = 1.0 - x; }
  let y = x * quarterPi;
  let q = y * y;
  let sine = y * ((((q * (1.0 / 362880.0) - (1.0 / 5040.0)) * q + (1.0 / 120.0)) * q - (1.0 / 6.0)) * q + 1.0);
  let cosine = (((q * (1.0 / 40320.0) - (1.0 / 720.0)) * q + (1.0 / 24.0)) * q - 0.5) * q + 1.0;
  let pair = select(vec2<f32>(cosine, sine), vec2<f32>(sine, cosine), ((octant + 1u) & 2u) != 0u);
  return pair * vec2<f32>(select(1.0, -1.0, octant >= 2u && octant <= 5u), select(1.0, -1.0, octant >= 4u));
}
fn gaussianPair(radiusWord: u32, angleWord: u32) -> vec2<f32> {
  return sqrt(2.0 * negativeLog(radiusWord)) * cosineAndSine(angleWord >> 8u);
}`;

interface Recipe {
  /** Elements that one thread writes. */
  readonly each: number;
  readonly declarations?: string;
  /** Sets `values[0 .. each)` for thread `index`. */
  readonly body: string;
}

const recipes: Readonly<Record<Distribution, Recipe>> = {
  gaussian: {
    each: 4,
    declarations: gaussian,
    body: `
  let words = philox(index);
  let first = gaussianPair(words.x, words.y);
  let second = gaussianPair(words.z, words.w);
  values[0] = first.x; values[1] = first.y; values[2] = second.x; values[3] = second.y;`,
  },
  // A word a thread: the block is computed four times, the writes stay short.
  rademacher: {
    each: 32,
    body: `
  let word = philox(index / 4u)[index % 4u];
  for (var bit = 0u; bit < 32u; bit++) { values[bit] = select(-1.0, 1.0, ((word >> bit) & 1u) == 1u); }`,
  },
  binomial64: {
    each: 2,
    body: `
  let bits = countOneBits(philox(index));
  values[0] = (f32(bits.x + bits.y) - 32.0) * 0.25;
  values[1] = (f32(bits.z + bits.w) - 32.0) * 0.25;`,
  },
  irwinhall12: {
    each: 1,
    body: `
  let words = philox(index);
  let fields = (words & vec4<u32>(1023u)) + ((words >> vec4<u32>(10u)) & vec4<u32>(1023u)) + ((words >> vec4<u32>(20u)) & vec4<u32>(1023u));
  values[0] = (2.0 * f32(fields.x + fields.y + fields.z + fields.w) - 12276.0) * (1.0 / 2048.0);`,
  },
  uniform: {
    each: 4,
    body: `
  let words = philox(index) >> vec4<u32>(8u);
  for (var i = 0u; i < 4u; i++) { values[i] = f32(words[i]) * (1.0 / 16777216.0); }`,
  },
  mask: {
    each: 4,
    body: `
  let words = philox(index);
  for (var i = 0u; i < 4u; i++) { values[i] = select(0.0, 1.0, words[i] < u.threshold); }`,
  },
};

type NoiseUniform = 'seedLow' | 'seedHigh' | 'step' | 'id' | 'purpose' | 'threshold' | 'count';

interface NoiseProgram<I extends string> {
  readonly program: Program<I, 'z', NoiseUniform>;
  /** Elements that one thread writes. */
  readonly each: number;
}

/** One program a distribution: threads take whole blocks of the generator, and none writes past the end. */
export const noiseProgram = (distribution: Distribution): NoiseProgram<never> =>
  write<never>(distribution, { key: 'noise', inputs: {}, entry: 'values[i]' });

/** The same onto x: z = x + factor · noise. */
export const addNoiseProgram = (distribution: Distribution): NoiseProgram<'x' | 'factor'> =>
  write(distribution, { key: 'add-noise', inputs: { x: 'f32', factor: 'f32' }, entry: 'x[start + i] + factor[0] * values[i]' });

function write<I extends string>(
  distribution: Distribution,
  { key, inputs, entry }: { readonly key: string; readonly inputs: Readonly<Record<I, 'f32'>>; readonly entry: string },
): NoiseProgram<I> {
  const { each, declarations = '', body } = recipes[distribution];
  return {
    each,
    program: program<I, 'z', NoiseUniform>({
      key: `${key}-${distribution}`,
      inputs,
      outputs: { z: 'f32' },
      uniforms: { seedLow: 'u32', seedHigh: 'u32', step: 'u32', id: 'u32', purpose: 'u32', threshold: 'u32', count: 'u32' },
      workgroup: lanes,
      declarations: philox + declarations,
      main: `
  let start = index * ${each}u;
  if (start >= u.count) { return; }
  var values: array<f32, ${each}>;
${body}
  for (var i = 0u; i < min(${each}u, u.count - start); i++) { z[start + i] = ${entry}; }`,
    }),
  };
}
