/**
 * Packed matrices: bytes in their file's own order, carried in int32 tensors, never widened while they rest. This file
 * is the truth of each format in plain TypeScript; kernels of every device are tested against it.
 */
import { halfToFloat } from './half.ts';

export type PackedFormat = 'codebook4' | 'codebook4-nested' | AffineFormat | GgufFormat;
export type AffineFormat = 'affine' | 'affine-symmetric';
export type GgufFormat = 'F16' | 'BF16' | 'Q4_0' | 'Q4_1' | 'Q8_0' | 'Q4_K' | 'Q6_K';

/** Attributes of every op over a packed matrix (out, in). */
export interface PackedShape {
  readonly format: PackedFormat;
  readonly out: number;
  readonly in: number;
  /** Elements of one absmax (codebook4), of one scale (affine: a divisor of `in`). GGUF formats have blocks of their own. */
  readonly blockSize: number;
  /** Of one code, affine formats only. */
  readonly bits?: AffineBits;
}
export type AffineBits = 2 | 3 | 4 | 8;

/**
 * The stored parts by name, on the host.
 * codebook4: codes (two a byte, first element in the HIGH nibble; blocks run over the flattened matrix), codebook [16], absmax.
 * codebook4-nested: absmax are bytes; scale = nestedMap[byte] · nestedAbsmax[block >> 8] + nestedOffset.
 * affine: codes are one bit-stream over the flattened matrix, code e in bits [bits · e, bits · (e + 1)), lowest first;
 * value = scales[group] · (code - zeros[group]), zeros one byte each. affine-symmetric: every zero is 2^(bits - 1).
 * GGUF formats: blocks, whole blocks along each row.
 */
export interface PackedParts {
  readonly codes?: Uint8Array;
  readonly codebook?: Float32Array;
  readonly absmax?: Float32Array | Uint8Array;
  readonly nestedMap?: Float32Array;
  readonly nestedAbsmax?: Float32Array;
  readonly nestedOffset?: Float32Array;
  readonly blocks?: Uint8Array;
  readonly scales?: Float32Array;
  readonly zeros?: Uint8Array;
}

/** Elements and bytes of one GGUF block. */
export const ggufBlocks: Readonly<Record<GgufFormat, { readonly elements: number; readonly bytes: number }>> = {
  F16: { elements: 1, bytes: 2 },
  BF16: { elements: 1, bytes: 2 },
  Q4_0: { elements: 32, bytes: 18 },
  Q4_1: { elements: 32, bytes: 20 },
  Q8_0: { elements: 32, bytes: 34 },
  Q4_K: { elements: 256, bytes: 144 },
  Q6_K: { elements: 256, bytes: 210 },
};

/** Decodes the elements [first, first + count) of the flattened matrix into `out` from `at`; f32 arithmetic throughout. */
export function decodePacked(shape: PackedShape, parts: PackedParts, first: number, count: number, out: Float32Array, at = 0): void {
  if (shape.format === 'codebook4' || shape.format === 'codebook4-nested') return decodeCodebook(shape, parts, first, count, out, at);
  if (shape.format === 'affine' || shape.format === 'affine-symmetric') return decodeAffine(shape, parts, first, count, out, at);
  const { elements, bytes } = ggufBlocks[shape.format];
  const blocks = parts.blocks!;
  const view = new DataView(blocks.buffer, blocks.byteOffset, blocks.byteLength);
  const element = ggufElements[shape.format];
  for (let i = 0; i < count; i++) {
    const e = first + i;
    const block = Math.floor(e / elements);
    out[at + i] = element(blocks, view, block * bytes, e - block * elements);
  }
}

function decodeCodebook({ blockSize }: PackedShape, parts: PackedParts, first: number, count: number, out: Float32Array, at: number): void {
  const codes = parts.codes!;
  const codebook = parts.codebook!;
  for (let i = 0; i < count; i++) {
    const e = first + i;
    const byte = codes[e >> 1]!;
    const code = e & 1 ? byte & 15 : byte >> 4;
    out[at + i] = codebook[code]! * blockScale(parts, Math.floor(e / blockSize));
  }
}

function decodeAffine(
  { blockSize, bits }: PackedShape,
  parts: PackedParts,
  first: number,
  count: number,
  out: Float32Array,
  at: number,
): void {
  const codes = parts.codes!;
  const scales = parts.scales!;
  const mask = 2 ** bits! - 1;
  let group = Math.floor(first / blockSize);
  let left = (group + 1) * blockSize - first;
  for (let i = 0; i < count; i++) {
    if (left === 0) {
      group++;
      left = blockSize;
    }
    left--;
    const bit = (first + i) * bits!;
    const byte = Math.floor(bit / 8);
    // A code of 3 bits may begin in one byte and end in the next.
    const code = ((codes[byte]! | (codes[byte + 1]! << 8)) >> (bit - 8 * byte)) & mask;
    out[at + i] = scales[group]! * (code - (parts.zeros?.[group] ?? (mask + 1) / 2));
  }
}

/** The f32 scale of one codebook4 block. */
export function blockScale(parts: PackedParts, block: number): number {
  const absmax = parts.absmax!;
  if (parts.nestedMap === undefined) return absmax[block]!;
  return Math.fround(Math.fround(parts.nestedMap[absmax[block]!]! * parts.nestedAbsmax![block >> 8]!) + parts.nestedOffset![0]!);
}

type Element = (bytes: Uint8Array, view: DataView, at: number, e: number) => number;

const { fround } = Math;
const half = (view: DataView, at: number): number => halfToFloat(view.getUint16(at, true));
const nibble = (byte: number, high: boolean | number): number => (high ? byte >> 4 : byte & 15);
const bfloatView = new DataView(new ArrayBuffer(4));

const ggufElements: Readonly<Record<GgufFormat, Element>> = {
  F16: (_, view, at) => half(view, at),
  BF16: (_, view, at) => {
    bfloatView.setUint32(0, view.getUint16(at, true) << 16);
    return bfloatView.getFloat32(0);
  },
  Q4_0: (b, view, at, e) => half(view, at) * (nibble(b[at + 2 + (e & 15)]!, e >> 4) - 8),
  Q4_1: (b, view, at, e) => fround(half(view, at) * nibble(b[at + 4 + (e & 15)]!, e >> 4)) + half(view, at + 2),
  Q8_0: (_, view, at, e) => half(view, at) * view.getInt8(at + 2 + e),
  Q4_K: (b, view, at, e) => {
    const { scale, min } = sixBitPair(b, at + 4, e >> 5);
    const q = nibble(b[at + 16 + 32 * (e >> 6) + (e & 31)]!, (e >> 5) & 1);
    return fround(fround(half(view, at) * scale) * q) - fround(half(view, at + 2) * min);
  },
  Q6_K: (b, view, at, e) => {
    const [h, k, l] = [e >> 7, (e & 127) >> 5, e & 31];
    const low = nibble(b[at + 64 * h + 32 * (k & 1) + l]!, k >> 1);
    const high = (b[at + 128 + 32 * h + l]! >> (2 * k)) & 3;
    return fround(half(view, at + 208) * view.getInt8(at + 192 + (e >> 4))) * ((low | (high << 4)) - 32);
  },
};

/** Scale and min of 32-element sub-block j out of the 12 bytes of 6-bit pairs. */
function sixBitPair(b: Uint8Array, at: number, j: number): { scale: number; min: number } {
  if (j < 4) return { scale: b[at + j]! & 63, min: b[at + j + 4]! & 63 };
  return {
    scale: (b[at + j + 4]! & 15) | ((b[at + j - 4]! >> 6) << 4),
    min: (b[at + j + 4]! >> 4) | ((b[at + j]! >> 6) << 4),
  };
}
