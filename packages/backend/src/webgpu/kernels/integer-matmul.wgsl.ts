import { integerLevels } from '@niwaki/tensor';
import type { Abilities } from '../abilities.ts';
import { program, workgroupSum, type Program } from '../program.ts';
import { fours, type Decoder } from './packed-decode.wgsl.ts';

export interface IntegerVariant extends Pick<Abilities, 'subgroups' | 'packedDots'> {
  readonly decoder: Decoder;
  readonly activations: 'int16' | 'int8';
  /** Of x, at most 4. */
  readonly rows: number;
  /** Threads of a workgroup. */
  readonly threads: number;
}

/** Entries of x that share a scale; a thread rounds so many and multiplies them with those of several columns. */
const block = 32;

/** Columns of a workgroup, in sums of four. */
export const integerColumns = 8;
const sums = integerColumns / 4;

/** One for each block of a short row. */
export const integerThreads = (terms: number): number => (terms > 32 * block ? 64 : 32);

/**
 * x̂·Ŵᵀ for a few rows of x. Eight bits: bytes with bytes, four at a time, summed in i32. Sixteen bits: integers in f32, whose
 * 24 bits hold the sums of 4-bit codes exactly, and those of others to their own rounding.
 */
export function integerProduct(variant: IntegerVariant): Program<string, 'y', 'columns' | 'terms'> {
  const { decoder, activations, rows, threads, subgroups, packedDots } = variant;
  const sum = workgroupSum('sumOf', 'vec4<f32>', { subgroups });
  const rowsOf = Array.from({ length: rows }, (_, row) => row);
  const bytes = activations === 'int8';
  const words = Array.from({ length: block / 4 }, (_, i) => i);
  return program({
    key: `integer-${activations}-${decoder.key}-${rows}-${threads}${subgroups ? '-subgroups' : ''}${packedDots && bytes ? '-dots' : ''}`,
    inputs: { x: 'vec4<f32>', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { columns: 'u32', terms: 'u32' },
    workgroup: threads,
    subgroups,
    declarations: () => `
${decoder.code}
${sum.code}
${levels}
${bytes ? byteProducts(variant) : floatProducts(decoder)}
// The integers of a block, the sums of its halves, and what they are multiples of.
struct Block { words: array<${bytes ? 'u32' : 'vec4<f32>'}, ${words.length}>, sums: vec2<f32>, scale: f32 }
fn blockOf(at: u32) -> Block {
  var fours: array<vec4<f32>, ${words.length}>;
  var peak = 0u;
  for (var i = 0u; i < ${words.length}u; i++) {
    fours[i] = x[at + i];
    let sizes = bitcast<vec4<u32>>(fours[i]) & vec4<u32>(0x7fffffffu);
    peak = max(peak, max(max(sizes.x, sizes.y), max(sizes.z, sizes.w)));
  }
  let level = levelOf(peak, ${integerLevels[activations].x}.0);
  var rounded: Block;
  rounded.scale = level.scale;
  for (var i = 0u; i < ${words.length}u; i++) {
    fours[i] = round(fours[i] * level.inverse);
    rounded.sums[i / ${words.length / 2}u] += dot(fours[i], vec4<f32>(1.0));
  }
${words.map((i) => `  rounded.words[${i}] = ${packed(variant, i)};`).join('\n')}
  return rounded;
}`,
    main: () => `${bookPrologue(variant)}
  let column0 = groupIndex * ${integerColumns}u;
${rowsOf.flatMap((row) => Array.from({ length: sums }, (_, s) => `  var sum${row}${s} = vec4<f32>(0.0);`)).join('\n')}
  for (var at = lane; at < u.terms / ${block}u; at += LANES) {
    let k = at * ${block}u;
${rowsOf.map((row) => `    let x${row} = blockOf((${row}u * u.terms + k) >> 2u);`).join('\n')}
${Array.from({ length: sums }, (_, s) => fourColumns(variant, s, rowsOf)).join('\n')}
  }
${rowsOf
  .flatMap((row) =>
    Array.from(
      { length: sums },
      (_, s) => `  {
    let total = ${sum.of(`sum${row}${s}`)};
    let column = column0 + ${4 * s}u + lane;
    if (lane < 4u && column < u.columns) { y[${row}u * u.columns + column] = total[lane]; }
  }`,
    ),
  )
  .join('\n')}`,
  });
}

/** What integers up to `most` are multiples of, as the reference has it; by bits, since WGSL need not know what is not finite. */
const levels = `
// WGSL's quotient may be two units off: what is left of the dividend corrects it.
fn ratio(a: f32, b: f32) -> f32 {
  let near = a / b;
  return near + fma(-near, b, a) / b;
}
struct Level { inverse: f32, scale: f32 }
fn levelOf(peak: u32, most: f32) -> Level {
  // 2^-100: smaller ones count as zeros.
  if (peak < 0x0d800000u) { return Level(0.0, 0.0); }
  if (peak >= 0x7f800000u) { return Level(0.0, bitcast<f32>(peak | 0x7fc00000u)); }
  let largest = bitcast<f32>(peak);
  return Level(ratio(most, largest), ratio(largest, most));
}`;

/** Word i of a block of x, its entries in the order of the codes' word that it meets. */
function packed({ decoder: { places }, activations, packedDots }: IntegerVariant, i: number): string {
  // Of eight neighbors the even ones, then the odd ones.
  const run = i & ~1;
  const parts = i % 2 === 0 ? 'xz' : 'yw';
  const four = places.woven ? `vec4<f32>(fours[${run}].${parts}, fours[${run + 1}].${parts})` : `fours[${i}]`;
  if (activations === 'int16') return four;
  return packedDots ? `pack4xI8(vec4<i32>(${four}))` : `bytesOf(vec4<i32>(${four}))`;
}

/** productOf(codes, x) -> i32 for four bytes each. */
function byteProducts({ decoder: { codes }, packedDots }: IntegerVariant): string {
  const meaning =
    codes === 'codebook'
      ? `
var<workgroup> book: array<u32, 16>;
fn meant(word: u32) -> u32 {
  return book[word & 255u] | (book[(word >> 8u) & 255u] << 8u) | (book[(word >> 16u) & 255u] << 16u) | (book[word >> 24u] << 24u);
}`
      : // All 8 bits of a code, less 128.
        `fn meant(word: u32) -> u32 { return word${codes === 'octets' ? ' ^ 0x80808080u' : ''}; }`;
  if (packedDots) return `${meaning}\nfn productOf(codes: u32, x: u32) -> i32 { return dot4I8Packed(meant(codes), x); }`;
  return `${meaning}
fn bytesOf(four: vec4<i32>) -> u32 {
  let bytes = bitcast<vec4<u32>>(four) & vec4<u32>(255u);
  return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}
fn signedOf(word: u32) -> vec4<i32> { return bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u); }
fn productOf(codes: u32, x: u32) -> i32 { return dot(signedOf(meant(codes)), signedOf(x)); }`;
}

/** productOf(codes, x) -> f32 for integers in f32. */
const floatProducts = ({ codes }: Decoder): string => `
${codes === 'codebook' ? 'var<workgroup> book: array<f32, 16>;' : ''}
${codes === 'floats' ? '' : fours[codes]}
fn productOf(codes: u32, x: vec4<f32>) -> f32 { return dot(fourOf(codes), x); }`;

/** A codebook's values as integers, and what they are multiples of. */
function bookPrologue({ decoder, activations }: IntegerVariant): string {
  if (decoder.codes !== 'codebook') return '';
  const value = 'round(codebook[lane] * bookLevel.inverse)';
  return `
  var bookPeak = 0u;
  for (var i = 0u; i < 16u; i++) { bookPeak = max(bookPeak, bitcast<u32>(codebook[i]) & 0x7fffffffu); }
  let bookLevel = levelOf(bookPeak, ${integerLevels[activations].codebook}.0);
  if (lane < 16u) { book[lane] = ${activations === 'int8' ? `bitcast<u32>(i32(${value})) & 255u` : value}; }
  workgroupBarrier();`;
}

/** Adds the products of a block with four columns to their sums: in a loop, since unrolled it takes a driver seconds to compile. */
function fourColumns({ decoder, activations }: IntegerVariant, s: number, rows: readonly number[]): string {
  const { codes, places, sharing } = decoder;
  const { stride } = places;
  const bytes = activations === 'int8';
  const read = Array.from({ length: block / 4 }, (_, i) => i);
  // A run gives two words of the block's codes, or one where the other belongs to another block.
  const parted = stride >= block;
  const runs = read
    .slice(0, parted ? 8 : 4)
    .map((i) => `      let run${i} = codesOf(${parted ? `(e & ~${stride}u)` : 'e'} + ${(stride === 4 ? 8 : 4) * i}u);`);
  const word = (i: number): string => {
    if (parted) return `select(run${i}.x, run${i}.y, (e & ${stride}u) != 0u)`;
    return stride === 4 ? `run${i >> 1}.${i % 2 === 0 ? 'x' : 'y'}` : `run${i % 4}.${i < 4 ? 'x' : 'y'}`;
  };
  const parts = sharing === 16 ? [read.slice(0, 4), read.slice(4)] : [read];
  const scale = codes === 'codebook' ? ' * bookLevel.scale' : '';
  return `    for (var c = 0u; c < 4u; c++) {
      let own = vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(c);
      let e = min(column0 + ${4 * s}u + c, u.columns - 1u) * u.terms + k;
${runs.join('\n')}
${read.map((i) => `      let word${i} = ${word(i)};`).join('\n')}
${parts
  .map((part, p) => {
    const product = (row: number): string => part.map((i) => `productOf(word${i}, x${row}.words[${i}])`).join(' + ');
    return `      {
        let scale = scaleOf(e + ${16 * p}u)${scale};
${rows
  .map((row) => {
    const total = parts.length === 1 ? `(x${row}.sums.x + x${row}.sums.y)` : `x${row}.sums[${p}]`;
    const offset = bytes && codes === 'octets' ? `(scale.y + 128.0 * scale.x)` : 'scale.y';
    const value = `x${row}.scale * (scale.x * ${bytes ? 'f32' : ''}(${product(row)}) + ${offset} * ${total})`;
    return `        sum${row}${s} += select(vec4<f32>(0.0), vec4<f32>(${value}), own);`;
  })
  .join('\n')}
      }`;
  })
  .join('\n')}
    }`;
}
