import { floatToHalf, ggufBlocks, wordsOf, type AffineBits, type GgufFormat, type PackedFormat, type PackedShape } from '@niwaki/tensor';
import { floats, type Host } from './parity.ts';

/** Byte offsets of the half-precision scales in a block of each format. */
const halves: Readonly<Record<GgufFormat, readonly number[]>> = {
  F16: [0],
  BF16: [],
  Q4_0: [0],
  Q4_1: [0, 2],
  Q8_0: [0],
  Q4_K: [0, 2],
  Q6_K: [208],
};

export const packedFormats: readonly PackedFormat[] = ['codebook4', 'codebook4-nested', ...(Object.keys(ggufBlocks) as GgufFormat[])];

const words = (bytes: Uint8Array): Host => {
  const values = wordsOf(bytes);
  return { shape: [values.length], values };
};

const randomBytes = (length: number, seed: number): Uint8Array =>
  Uint8Array.from(floats([length], seed, 128).values, (v) => Math.floor(v + 128) & 255);

/** A packed matrix of any bytes, with scales that keep its values around 1; every seventh half is subnormal. */
export function packedFixture(
  format: PackedFormat,
  out: number,
  width: number,
  blockSize = 64,
  bits: AffineBits = 4,
): { shape: PackedShape; parts: Record<string, Host> } {
  const shape = { format, out, in: width, blockSize };
  if (format === 'affine' || format === 'affine-symmetric') {
    const groupSize = width % blockSize === 0 ? blockSize : width;
    const groups = (out * width) / groupSize;
    const parts = { codes: words(randomBytes(Math.ceil((out * width * bits) / 8), 3)), scales: floats([groups], 4) };
    const zeros = Uint8Array.from(randomBytes(groups, 5), (byte) => byte & (2 ** bits - 1));
    return {
      shape: { ...shape, blockSize: groupSize, bits },
      parts: format === 'affine' ? { ...parts, zeros: words(zeros) } : parts,
    };
  }
  if (format === 'codebook4' || format === 'codebook4-nested') {
    const blocks = Math.ceil((out * width) / blockSize);
    const codes = words(randomBytes(Math.ceil((out * width) / 2), 3));
    const codebook = floats([16], 5);
    if (format === 'codebook4') return { shape, parts: { codes, codebook, absmax: floats([blocks], 4) } };
    const nested = { nestedMap: floats([256], 6), nestedAbsmax: floats([Math.ceil(blocks / 256)], 7), nestedOffset: floats([1], 8) };
    return { shape, parts: { codes, codebook, absmax: words(randomBytes(blocks, 4)), ...nested } };
  }
  const { elements, bytes } = ggufBlocks[format];
  const blocks = randomBytes(((out * width) / elements) * bytes, 9);
  const view = new DataView(blocks.buffer);
  for (let at = 0, n = 0; at < blocks.length; at += bytes) {
    for (const offset of halves[format]) view.setUint16(at + offset, n++ % 7 === 6 ? 0x83ff : floatToHalf(Math.sin(n) / 8), true);
    if (format === 'BF16') view.setUint16(at, (Math.sin(at) > 0 ? 0x3f00 : 0xbe00) | (blocks[at]! & 127), true);
  }
  return { shape, parts: { blocks: words(blocks) } };
}

/** Widths a format can have: whole blocks along each row. */
export const widthsOf = (format: PackedFormat): readonly number[] => {
  if (format === 'Q4_K' || format === 'Q6_K') return [256, 768];
  if (format === 'F16' || format === 'BF16') return [7, 64];
  return format.startsWith('codebook4') ? [65, 192] : [32, 96];
};

/** The parts of `count` matrices in sections of one size, made of those of one: each has its own codes, scales and tables. */
export function stackedFixture(parts: Readonly<Record<string, Host>>, { format }: PackedShape, count: number): Record<string, Host> {
  const stacked = Object.entries(parts).map(([name, { shape, values }]) => {
    const all = new (values.constructor as Float32ArrayConstructor)(shape[0]! * count);
    for (let e = 0; e < count; e++) all.set(another(values, format, e), e * shape[0]!);
    return [name, { shape: [all.length], values: all }] as const;
  });
  return Object.fromEntries(stacked);
}

/** Values like the given ones, others for each e: floats shrink, words move on, and in blocks all bytes but the scales change. */
function another(values: Float32Array | Int32Array, format: PackedFormat, e: number): Float32Array | Int32Array {
  if (values instanceof Float32Array) return values.map((value) => value * (1 - e / 10));
  const block = ggufBlocks[format as GgufFormat];
  if (block === undefined || block.elements === 1) return values.map((_, i) => values[(i + e) % values.length]!);
  const changed = values.slice();
  const scales = new Set(halves[format as GgufFormat].flatMap((at) => [at, at + 1]));
  const bytes = new Uint8Array(changed.buffer);
  for (let i = 0; i < bytes.length; i++) if (!scales.has(i % block.bytes)) bytes[i]! ^= 17 * e;
  return changed;
}
