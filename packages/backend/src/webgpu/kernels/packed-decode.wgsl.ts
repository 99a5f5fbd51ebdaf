import { ConfigError, type AffineBits, type GgufFormat, type PackedShape } from '@niwaki/tensor';
import type { Element } from '../program.ts';

/**
 * How WGSL reads one format: element e of the flattened matrix is codeOf(e) · scaleOf(e).x + scaleOf(e).y, and aligned
 * runs of at least 8 elements share a scale. Bytes stay in the file's order; blocks of 18, 34 or 210 bytes begin inside words.
 */
export interface Decoder {
  readonly key: string;
  readonly inputs: Readonly<Record<string, Element>>;
  /** Defines codeOf(e: u32) -> f32 and scaleOf(e: u32) -> vec2<f32>. */
  readonly code: string;
}

/** Elements decoded at a time, with one scale. */
export const runLength = 8;

export function decoderOf(shape: PackedShape): Decoder {
  const { format, blockSize } = shape;
  if (format === 'affine' || format === 'affine-symmetric') return affineDecoder(shape);
  if (format !== 'codebook4' && format !== 'codebook4-nested')
    return { key: format, inputs: { blocks: 'u32' }, code: words + half + gguf[format] };
  if (blockSize % runLength !== 0) {
    throw new ConfigError(`${format}: WebGPU reads blocks of a multiple of ${runLength} elements, got ${blockSize}`, { format, blockSize });
  }
  const key = `${format}-${blockSize}`;
  if (format === 'codebook4') {
    const scale = `fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(absmax[e / ${blockSize}u], 0.0); }`;
    return { key, inputs: { codes: 'u32', codebook: 'f32', absmax: 'f32' }, code: codebookCode + scale };
  }
  return {
    key,
    inputs: { codes: 'u32', codebook: 'f32', absmax: 'u32', nestedMap: 'f32', nestedAbsmax: 'f32', nestedOffset: 'f32' },
    code: `${codebookCode}
fn scaleOf(e: u32) -> vec2<f32> {
  let block = e / ${blockSize}u;
  let byte = (absmax[block >> 2u] >> ((block & 3u) * 8u)) & 255u;
  return vec2<f32>(nestedMap[byte] * nestedAbsmax[block >> 8u] + nestedOffset[0], 0.0);
}`,
  };
}

/**
 * A bit-stream of codes, lowest bits first. The zero goes in with the offset, s·q - s·z, so that a run reads it once: a
 * rounding or two away from s·(q - z), and exactly 0 where q is z.
 */
function affineDecoder({ format, blockSize, bits, in: width }: PackedShape): Decoder {
  if (blockSize % runLength !== 0 && blockSize !== width) {
    throw new ConfigError(`${format}: WebGPU reads groups of a multiple of ${runLength} elements or whole rows, got ${blockSize}`, {
      format,
      blockSize,
    });
  }
  const symmetric = format === 'affine-symmetric';
  const zero = symmetric ? `${2 ** (bits! - 1)}.0` : 'f32((zeros[group >> 2u] >> ((group & 3u) * 8u)) & 255u)';
  return {
    key: `${format}-${bits}-${blockSize}`,
    inputs: { codes: 'u32', scales: 'f32', ...(symmetric ? {} : { zeros: 'u32' }) },
    code: `${streamCode(bits!)}
fn scaleOf(e: u32) -> vec2<f32> {
  let group = e / ${blockSize}u;
  let scale = scales[group];
  return vec2<f32>(scale, -(scale * ${zero}));
}`,
  };
}

function streamCode(bits: AffineBits): string {
  if (bits !== 3) {
    const each = 32 / bits;
    return `fn codeOf(e: u32) -> f32 { return f32((codes[e / ${each}u] >> ((e % ${each}u) * ${bits}u)) & ${2 ** bits - 1}u); }`;
  }
  // 32 codes fill three words; the 10th and the 21st begin in one and end in the next.
  return `
fn codeOf(e: u32) -> f32 {
  let bit = (e & 31u) * 3u;
  let at = (e >> 5u) * 3u + (bit >> 5u);
  let shift = bit & 31u;
  var code = codes[at] >> shift;
  if (shift > 29u) { code |= codes[at + 1u] << (32u - shift); }
  return f32(code & 7u);
}`;
}

// Two elements a byte, the first in the high nibble.
const codebookCode = `
fn codeOf(e: u32) -> f32 {
  let byte = codes[e >> 3u] >> (((e >> 1u) & 3u) * 8u);
  return codebook[(byte >> (4u - 4u * (e & 1u))) & 15u];
}
`;

const words = `
fn byteAt(at: u32) -> u32 { return (blocks[at >> 2u] >> ((at & 3u) * 8u)) & 255u; }
fn halfAt(at: u32) -> f32 { return half16((blocks[at >> 2u] >> ((at & 2u) * 8u)) & 0xffffu); }
fn nibbleAt(at: u32, high: bool) -> u32 { return (byteAt(at) >> select(0u, 4u, high)) & 15u; }
fn signedAt(at: u32) -> f32 { return f32(extractBits(i32(byteAt(at)), 0u, 8u)); }
`;

// By its bits: the built-in conversion may flush subnormal halves, which scales of small weights are.
const half = `
fn half16(bits: u32) -> f32 {
  let exponent = (bits >> 10u) & 31u;
  let fraction = bits & 1023u;
  var magnitude = bitcast<f32>(((exponent + 112u) << 23u) | (fraction << 13u));
  if (exponent == 0u) { magnitude = f32(fraction) * (1.0 / 16777216.0); }
  if (exponent == 31u) { magnitude = bitcast<f32>(0x7f800000u | (fraction << 13u)); }
  return select(magnitude, -magnitude, (bits & 0x8000u) != 0u);
}
`;

const gguf: Readonly<Record<GgufFormat, string>> = {
  F16: `
fn codeOf(e: u32) -> f32 { return halfAt(2u * e); }
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }`,
  BF16: `
fn codeOf(e: u32) -> f32 { return bitcast<f32>((blocks[e >> 1u] >> ((e & 1u) * 16u)) << 16u); }
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }`,
  Q4_0: `
fn codeOf(e: u32) -> f32 { return f32(nibbleAt((e >> 5u) * 18u + 2u + (e & 15u), (e & 16u) != 0u)) - 8.0; }
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(halfAt((e >> 5u) * 18u), 0.0); }`,
  Q4_1: `
fn codeOf(e: u32) -> f32 { return f32(nibbleAt((e >> 5u) * 20u + 4u + (e & 15u), (e & 16u) != 0u)); }
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(halfAt((e >> 5u) * 20u), halfAt((e >> 5u) * 20u + 2u)); }`,
  Q8_0: `
fn codeOf(e: u32) -> f32 { return signedAt((e >> 5u) * 34u + 2u + (e & 31u)); }
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(halfAt((e >> 5u) * 34u), 0.0); }`,
  Q4_K: `
fn codeOf(e: u32) -> f32 {
  let within = e & 255u;
  return f32(nibbleAt((e >> 8u) * 144u + 16u + 32u * (within >> 6u) + (e & 31u), (e & 32u) != 0u));
}
fn scaleOf(e: u32) -> vec2<f32> {
  let at = (e >> 8u) * 144u;
  let j = (e & 255u) >> 5u;
  var scale = byteAt(at + 4u + j) & 63u;
  var least = byteAt(at + 8u + j) & 63u;
  if (j >= 4u) {
    let low = byteAt(at + 8u + j);
    scale = (low & 15u) | ((byteAt(at + j) >> 6u) << 4u);
    least = (low >> 4u) | ((byteAt(at + 4u + j) >> 6u) << 4u);
  }
  return vec2<f32>(halfAt(at) * f32(scale), -(halfAt(at + 2u) * f32(least)));
}`,
  Q6_K: `
fn codeOf(e: u32) -> f32 {
  let at = (e >> 8u) * 210u;
  let h = (e & 255u) >> 7u;
  let k = (e & 127u) >> 5u;
  let l = e & 31u;
  let low = nibbleAt(at + 64u * h + 32u * (k & 1u) + l, k >= 2u);
  let high = (byteAt(at + 128u + 32u * h + l) >> (2u * k)) & 3u;
  return f32(low | (high << 4u)) - 32.0;
}
fn scaleOf(e: u32) -> vec2<f32> {
  let at = (e >> 8u) * 210u;
  return vec2<f32>(halfAt(at + 208u) * signedAt(at + 192u + ((e & 255u) >> 4u)), 0.0);
}`,
};
