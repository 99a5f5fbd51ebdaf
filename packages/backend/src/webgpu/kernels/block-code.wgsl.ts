import { codeBuckets } from '@niwaki/tensor';
import { lanes, program, reduction, type Program } from '../program.ts';

type Encode = Program<'x' | 'base' | 'boundary', 'words' | 'scales', 'count' | 'blocks' | 'blockSize'>;

/** WGSL of what differs between shaders that write codes. */
interface BlockCodes {
  /** Begins the names of its variables: `…Value` and `…Word`. */
  readonly name: string;
  /** Entry `i` of the tensor. */
  readonly value: string;
  /** The variable that holds the block's scale. */
  readonly scale: string;
  /** The function that makes a code of an entry and of what it is divided by. */
  readonly codeOf: string;
  /** What becomes of `…Word`, the w-th. */
  readonly store: string;
}

/**
 * The codes of a block [start, end) of one tensor or of several: four a word and a lane, so that no two lanes write one word.
 * `each` is run once an entry, after the values of all.
 */
export const codesOfBlock = (tensors: readonly BlockCodes[], each = ''): string => `
${tensors.map(({ name, scale }) => `  let ${name}Divisor = select(${scale}, 1.0, ${scale} == 0.0);`).join('\n')}
  for (var w = start / 4u + lane; w * 4u < end; w += LANES) {
${tensors.map(({ name }) => `    var ${name}Word = 0u;`).join('\n')}
    for (var k = 0u; k < 4u; k++) {
      let i = w * 4u + k;
${tensors.map(({ name }) => `      var ${name}Value = 0.0;`).join('\n')}
      if (i < end) {
${tensors.map(({ name, value }) => `        ${name}Value = ${value};`).join('\n')}
        ${each}
      }
${tensors.map(({ name, codeOf }) => `      ${name}Word |= ${codeOf}(${name}Value, ${name}Divisor) << (8u * k);`).join('\n')}
    }
${tensors.map(({ store }) => `    ${store};`).join('\n')}
  }`;

/** One workgroup a block: its largest magnitude, then four codes a word. */
export const encodeBlocks = ({ signed }: { readonly signed: boolean }): Encode =>
  program({
    key: `encode-blocks-${signed ? 'signed' : 'unsigned'}`,
    inputs: { x: 'f32', base: 'f32', boundary: 'f32' },
    outputs: { words: 'u32', scales: 'f32' },
    uniforms: { count: 'u32', blocks: 'u32', blockSize: 'u32' },
    workgroup: 64,
    declarations: `${reduction('largest', 'max(a, b)')}
fn codeOf(value: f32, divisor: f32) -> u32 {
  let size = abs(value) / divisor;
  let below = ${signed ? 'value < 0.0' : 'false'};
  let bucket = min(u32(sqrt(sqrt(sqrt(size))) * ${codeBuckets}.0), ${codeBuckets}u);
  let row = bucket + select(0u, ${codeBuckets + 1}u, below);
  let step = select(0.0, 1.0, size > boundary[row]);
  return u32(base[row] + select(step, -step, below));
}`,
    main: `
  if (groupIndex >= u.blocks) { return; }
  let start = groupIndex * u.blockSize;
  let end = min(u.count, start + u.blockSize);
  var mine = 0.0;
  for (var i = start + lane; i < end; i += LANES) { mine = max(mine, abs(x[i])); }
  let scale = largest(mine, lane);
  if (lane == 0u) { scales[groupIndex] = scale; }${codesOfBlock([
    { name: 'x', value: 'x[i]', scale: 'scale', codeOf: 'codeOf', store: 'words[w] = xWord' },
  ])}`,
  });

export const decodeBlocks: Program<'words' | 'scales' | 'map', 'values', 'count' | 'blockSize'> = program({
  key: 'decode-blocks',
  inputs: { words: 'u32', scales: 'f32', map: 'f32' },
  outputs: { values: 'f32' },
  uniforms: { count: 'u32', blockSize: 'u32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  let code = (words[index / 4u] >> (8u * (index % 4u))) & 255u;
  values[index] = map[code] * scales[index / u.blockSize];`,
});
