import { ConfigError, type AffineBits, type GgufFormat, type PackedShape } from '@niwaki/tensor';
import type { Element } from '../program.ts';

/**
 * How WGSL reads one format, eight entries of the flattened matrix at a time: entry e is its code · scaleOf(e).x +
 * scaleOf(e).y. Codes are taken out of whole words, four to a word of bytes, where they lie: a format that keeps the halves
 * of a block in the nibbles of the same bytes gives the two fours from two places. Bytes stay in the file's order; blocks of
 * 18, 34 or 210 bytes begin inside words.
 */
export interface Decoder {
  readonly key: string;
  readonly inputs: Readonly<Record<string, Element>>;
  readonly codes: Codes;
  readonly places: Places;
  /** Runs behind one another, at least, that have the scales of the first. */
  readonly alike: 1 | 2 | 4;
  /** Entries that share a scale, where they are fewer than 32 in a format that is multiplied in integers. */
  readonly sharing?: 16;
  /**
   * Defines scaleOf(e: u32) -> vec2<f32>, and codesOf(e: u32) -> vec2<u32>, the first and the second four codes of the run
   * at e as bytes; of floats runOf(e: u32) -> Run itself.
   */
  readonly code: string;
}

/** What a byte says: a number (unsigned below 128, or of all 8 bits), one of 16 values, or nothing, where entries are floats themselves. */
export type Codes = 'unsigned' | 'octets' | 'signed' | 'codebook' | 'floats';

/** Where the eight entries of a run lie. */
export interface Places {
  /** The second four lie so many entries after the first: 4, or more where runs of neighboring words fill the gap. */
  readonly stride: 4 | 16 | 32 | 64;
  /** Of eight neighbors, the first four are the even ones, the second four the odd ones. */
  readonly woven?: true;
  /** The second four have a scale of their own. */
  readonly twoScales?: true;
}

/** Entries decoded at a time. Aligned, with neighbors as they lie in a row, they share a scale. */
export const runLength = 8;

export function decoderOf(shape: PackedShape): Decoder {
  const { format, blockSize } = shape;
  if (format === 'affine' || format === 'affine-symmetric') return affineDecoder(shape);
  if (format !== 'codebook4' && format !== 'codebook4-nested') return { key: format, inputs: { blocks: 'u32' }, ...gguf[format] };
  if (blockSize % runLength !== 0) {
    throw new ConfigError(`${format}: WebGPU reads blocks of a multiple of ${runLength} elements, got ${blockSize}`, { format, blockSize });
  }
  const [inputs, scale] = format === 'codebook4' ? plainAbsmax(blockSize) : nestedAbsmax(blockSize);
  return {
    key: `${format}-${blockSize}`,
    inputs: { codes: 'u32', codebook: 'f32', ...inputs },
    codes: 'codebook',
    places: woven,
    alike: alikeIn(blockSize),
    // Two elements a byte, the first in the high nibble.
    code: `
fn codesOf(e: u32) -> vec2<u32> {
  let word = codes[e >> 3u];
  return vec2<u32>(word >> 4u, word) & vec2<u32>(0x0f0f0f0fu);
}
${scale}`,
  };
}

const woven: Places = { stride: 4, woven: true };

/** Runs of a block that begin together with it; whole rows that are a block may begin anywhere. */
const alikeIn = (blockSize: number): 1 | 2 | 4 => (blockSize % (2 * runLength) === 0 ? 2 : 1);

type Scale = readonly [inputs: Decoder['inputs'], code: string];

const plainAbsmax = (blockSize: number): Scale => [
  { absmax: 'f32' },
  `fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(absmax[e / ${blockSize}u], 0.0); }`,
];

const nestedAbsmax = (blockSize: number): Scale => [
  { absmax: 'u32', nestedMap: 'f32', nestedAbsmax: 'f32', nestedOffset: 'f32' },
  `
fn scaleOf(e: u32) -> vec2<f32> {
  let block = e / ${blockSize}u;
  let byte = (absmax[block >> 2u] >> ((block & 3u) * 8u)) & 255u;
  return vec2<f32>(nestedMap[byte] * nestedAbsmax[block >> 8u] + nestedOffset[0], 0.0);
}`,
];

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
    codes: bits === 8 ? 'octets' : 'unsigned',
    places: bits === 8 ? { stride: 4 } : woven,
    alike: alikeIn(blockSize),
    code: `
fn codesOf(e: u32) -> vec2<u32> {${streams[bits!]}
}
fn scaleOf(e: u32) -> vec2<f32> {
  let group = e / ${blockSize}u;
  let scale = scales[group];
  return vec2<f32>(scale, -(scale * ${zero}));
}`,
  };
}

/** The eight codes from e on, which take as many bytes as a code has bits. */
const streams: Readonly<Record<AffineBits, string>> = {
  2: `
  var word = (codes[e >> 4u] >> ((e & 8u) << 1u)) & 0xffffu;
  word = (word | (word << 8u)) & 0x00ff00ffu;
  word = (word | (word << 4u)) & 0x0f0f0f0fu;
  return vec2<u32>(word, word >> 2u) & vec2<u32>(0x03030303u);`,
  // 32 codes fill three words; the second and the third run begin in one and end in the next.
  3: `
  let bit = 3u * (e & 31u);
  let at = 3u * (e >> 5u) + (bit >> 5u);
  let shift = bit & 31u;
  // In two steps: a shift by 32 would be none.
  let word = (codes[at] >> shift) | ((codes[at + 1u] << 1u) << (31u - shift));
  let two = vec2<u32>(word, word >> 3u);
  return (two & vec2<u32>(7u)) | ((two << vec2<u32>(2u)) & vec2<u32>(0x700u))
    | ((two << vec2<u32>(4u)) & vec2<u32>(0x70000u)) | ((two << vec2<u32>(6u)) & vec2<u32>(0x7000000u));`,
  4: `
  let word = codes[e >> 3u];
  return vec2<u32>(word, word >> 4u) & vec2<u32>(0x0f0f0f0fu);`,
  8: `
  return vec2<u32>(codes[e >> 2u], codes[(e >> 2u) + 1u]);`,
};

const words = `
fn byteAt(at: u32) -> u32 { return (blocks[at >> 2u] >> ((at & 3u) * 8u)) & 255u; }
fn halfAt(at: u32) -> f32 { return half16((blocks[at >> 2u] >> ((at & 2u) * 8u)) & 0xffffu); }
fn signedAt(at: u32) -> f32 { return f32(extractBits(i32(byteAt(at)), 0u, 8u)); }
fn nibbles(word: u32) -> vec2<u32> { return vec2<u32>(word, word >> 4u) & vec2<u32>(0x0f0f0f0fu); }
// Four bytes from an even place on, in two steps: a shift by 32 would be none.
fn wordAt(at: u32) -> u32 {
  let shift = (at & 2u) * 8u;
  return (blocks[at >> 2u] >> shift) | ((blocks[(at >> 2u) + 1u] << 1u) << (31u - shift));
}
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

const ones = 'fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }';

const floatRun = (pair: string): string => `
fn pairAt(at: u32) -> vec2<f32> {
  let word = blocks[at];
  return ${pair};
}
fn runOf(e: u32) -> Run {
  let at = e >> 1u;
  return Run(vec4<f32>(pairAt(at), pairAt(at + 1u)), vec4<f32>(pairAt(at + 2u), pairAt(at + 3u)));
}
${ones}`;

const gguf: Readonly<Record<GgufFormat, Omit<Decoder, 'key' | 'inputs'>>> = {
  F16: {
    codes: 'floats',
    places: { stride: 4 },
    alike: 1,
    code: half + floatRun('vec2<f32>(half16(word & 0xffffu), half16(word >> 16u))'),
  },
  BF16: {
    codes: 'floats',
    places: { stride: 4 },
    alike: 1,
    code: floatRun('bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u))'),
  },
  Q4_0: {
    codes: 'unsigned',
    places: { stride: 16 },
    alike: 2,
    code: `${words}${half}
fn codesOf(e: u32) -> vec2<u32> { return nibbles(wordAt((e >> 5u) * 18u + 2u + (e & 15u))); }
fn scaleOf(e: u32) -> vec2<f32> {
  let scale = halfAt((e >> 5u) * 18u);
  return vec2<f32>(scale, -8.0 * scale);
}`,
  },
  Q4_1: {
    codes: 'unsigned',
    places: { stride: 16 },
    alike: 2,
    code: `${words}${half}
fn codesOf(e: u32) -> vec2<u32> { return nibbles(blocks[(e >> 5u) * 5u + 1u + ((e & 15u) >> 2u)]); }
fn scaleOf(e: u32) -> vec2<f32> {
  let word = blocks[(e >> 5u) * 5u];
  return vec2<f32>(half16(word & 0xffffu), half16(word >> 16u));
}`,
  },
  Q8_0: {
    codes: 'signed',
    places: { stride: 4 },
    alike: 2,
    code: `${words}${half}
fn codesOf(e: u32) -> vec2<u32> {
  let at = (e >> 5u) * 34u + 2u + (e & 31u);
  return vec2<u32>(wordAt(at), wordAt(at + 4u));
}
fn scaleOf(e: u32) -> vec2<f32> { return vec2<f32>(halfAt((e >> 5u) * 34u), 0.0); }`,
  },
  Q4_K: {
    codes: 'unsigned',
    places: { stride: 32, twoScales: true },
    alike: 4,
    code: `${words}${half}
fn codesOf(e: u32) -> vec2<u32> { return nibbles(blocks[(e >> 8u) * 36u + 4u + ((e & 192u) >> 3u) + ((e & 31u) >> 2u)]); }
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
  },
  Q6_K: {
    codes: 'unsigned',
    places: { stride: 64, twoScales: true },
    alike: 4,
    sharing: 16,
    code: `${words}${half}
fn codesOf(e: u32) -> vec2<u32> {
  let at = (e >> 8u) * 210u;
  let h = (e & 128u) >> 1u;
  let low = nibbles(wordAt(at + h + (e & 63u)));
  let high = wordAt(at + 128u + (h >> 1u) + (e & 31u)) >> ((e & 32u) >> 4u);
  return low | (vec2<u32>(high << 4u, high) & vec2<u32>(0x30303030u));
}
fn scaleOf(e: u32) -> vec2<f32> {
  let at = (e >> 8u) * 210u;
  let scale = halfAt(at + 208u) * signedAt(at + 192u + ((e & 255u) >> 4u));
  return vec2<f32>(scale, -32.0 * scale);
}`,
  },
};

const ofBytes = `
fn fourOf(word: u32) -> vec4<f32> { return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u)); }`;

/** What bytes stand for as floats: declarations of fourOf(word: u32) -> vec4<f32>, which for a codebook reads `book`. */
export const fours: Readonly<Record<Exclude<Codes, 'floats'>, string>> = {
  unsigned: ofBytes,
  octets: ofBytes,
  signed: `
fn fourOf(word: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}`,
  codebook: `
fn fourOf(word: u32) -> vec4<f32> {
  return vec4<f32>(book[word & 255u], book[(word >> 8u) & 255u], book[(word >> 16u) & 255u], book[word >> 24u]);
}`,
};

/** Values that codes name, close to the threads that look them up; see `prologueOf`. */
const bookOf = ({ codes }: Decoder): string => (codes === 'codebook' ? 'var<workgroup> book: array<f32, 16>;' : '');

/** Statements before the first entry is decoded, in uniform control flow; at least 16 threads. */
export const prologueOf = ({ codes }: Decoder): string =>
  codes === 'codebook'
    ? `
  if (lane < 16u) { book[lane] = codebook[lane]; }
  workgroupBarrier();`
    : '';

/**
 * Declarations for decoding in f32: runOf(e) -> Run, eight codes as floats where `places` says that they lie; lineOf(e) ->
 * Run, eight neighbors in their order and with their scale applied; entryOf(e) -> f32, any entry.
 */
export function floatDecoding(decoder: Decoder): string {
  const { codes, places, code } = decoder;
  const { stride } = places;
  return `
struct Run { first: vec4<f32>, second: vec4<f32> }
${bookOf(decoder)}
${code}
${
  codes === 'floats'
    ? ''
    : `${fours[codes]}
fn runOf(e: u32) -> Run {
  let codes = codesOf(e);
  return Run(fourOf(codes.x), fourOf(codes.y));
}`
}
${places.woven ? wovenLine : stride === 4 ? straightLine : partedLine(stride)}
fn lineOf(e: u32) -> Run {
  let scale = scaleOf(e);
  let line = codeLine(e);
  return Run(line.first * scale.x + scale.y, line.second * scale.x + scale.y);
}
fn entryOf(e: u32) -> f32 {
  let scale = scaleOf(e);
  let line = codeLine(e & ~7u);
  let four = select(line.first, line.second, (e & 4u) != 0u);
  return four[e & 3u] * scale.x + scale.y;
}
`;
}

const straightLine = 'fn codeLine(e: u32) -> Run { return runOf(e); }';

const wovenLine = `
fn codeLine(e: u32) -> Run {
  let run = runOf(e);
  return Run(vec4<f32>(run.first.x, run.second.x, run.first.y, run.second.y), vec4<f32>(run.first.z, run.second.z, run.first.w, run.second.w));
}`;

/** Eight neighbors are the first fours, or the second fours, of two runs. */
const partedLine = (stride: number): string => `
fn codeLine(e: u32) -> Run {
  let a = codesOf(e & ~${stride}u);
  let b = codesOf((e & ~${stride}u) + 4u);
  return Run(fourOf(select(a.x, a.y, (e & ${stride}u) != 0u)), fourOf(select(b.x, b.y, (e & ${stride}u) != 0u)));
}`;
