import { codeRows } from '../../block-code.ts';
import { program, reduction, type Program } from '../program.ts';
import { codesOfBlock } from './block-code.wgsl.ts';

type Uniform = 'count' | 'blocks' | 'blockSize' | 'beta1' | 'beta2' | 'rest1' | 'rest2' | 'eps';
const uniforms: Readonly<Record<Uniform, 'u32' | 'f32'>> = {
  count: 'u32',
  blocks: 'u32',
  blockSize: 'u32',
  beta1: 'f32',
  beta2: 'f32',
  rest1: 'f32',
  rest2: 'f32',
  eps: 'f32',
};

/** Where the tables of one moment begin: its map, boundaries and codes, as `tablesOf` of coded-adam.ts lays them out. */
interface Tables {
  readonly map: number;
  readonly boundaries: number;
  readonly codes: number;
}
const momentumTables: Tables = { map: 0, boundaries: 512, codes: 512 + 3 * codeRows };
const varianceTables: Tables = { map: 256, boundaries: 512 + 2 * codeRows, codes: 512 + 5 * codeRows };

/** A moment before the step, and the code of one after it. */
const encode = (moment: 'momentum' | 'variance', { map, boundaries, codes }: Tables): string => `
fn old_${moment}(i: u32) -> f32 {
  let code = (${moment}Words[i / 4u] >> (8u * (i % 4u))) & 255u;
  return bitcast<f32>(tables[${map}u + code]) * ${moment}Scales[i / u.blockSize];
}
fn code_${moment}(value: f32, divisor: f32) -> u32 {
  let quotient = value / divisor;
  let size = abs(quotient);
  var row = u32(clamp(i32(bitcast<u32>(size) >> 15u) - 26623, 0, ${codeRows - 1}));
  ${moment === 'momentum' ? `row += select(0u, ${codeRows}u, value < 0.0);` : ''}
  let pair = tables[${codes}u + row];
  return select(pair & 255u, pair >> 8u, size > bitcast<f32>(tables[${boundaries}u + row]));
}`;

/** A block of a moment: the largest of its new values, which is the scale, then its codes; \`each\` sees every new value once. */
const recode = (moment: 'momentum' | 'variance', next: string, each = ''): string => `
  if (groupIndex >= u.blocks) { return; }
  let start = groupIndex * u.blockSize;
  let end = min(u.count, start + u.blockSize);
  var mine = 0.0;
  for (var w = start / 4u + lane; w * 4u < end; w += LANES) {
    for (var i = w * 4u; i < min(end, w * 4u + 4u); i++) {
      let value = ${next};
      mine = max(mine, abs(value));
      ${each}
    }
  }
  let scale = largest(mine, lane);
  let applied = factors[2] != 0.0;
  if (lane == 0u) { newScales[groupIndex] = select(${moment}Scales[groupIndex], scale, applied); }${codesOfBlock({
    value: next,
    codeOf: `code_${moment}`,
    store: `newWords[w] = select(${moment}Words[w], word, applied)`,
  })}`;

const momentumNext = 'old_momentum(i) * u.beta1 + gradient[i] * u.rest1';
const varianceNext = 'old_variance(i) * u.beta2 + gradient[i] * gradient[i] * u.rest2';

/** One workgroup a block, which is read again for its codes: blocks have any size. The direction takes both moments before they are rounded. */
export const codedMomentum: Program<
  'gradient' | 'momentumWords' | 'momentumScales' | 'varianceWords' | 'varianceScales' | 'factors' | 'tables',
  'direction' | 'newWords' | 'newScales',
  Uniform
> = program({
  key: 'coded-adam-momentum',
  inputs: {
    gradient: 'f32',
    momentumWords: 'u32',
    momentumScales: 'f32',
    varianceWords: 'u32',
    varianceScales: 'f32',
    factors: 'f32',
    tables: 'u32',
  },
  outputs: { direction: 'f32', newWords: 'u32', newScales: 'f32' },
  uniforms,
  workgroup: 64,
  declarations: `${reduction('largest', 'max(a, b)')}
${encode('momentum', momentumTables)}
${encode('variance', varianceTables)}`,
  main: recode('momentum', momentumNext, `direction[i] = (value / factors[0]) / (sqrt((${varianceNext}) / factors[1]) + u.eps);`),
});

/** The second moment by itself: with both in one, the shader would bind more than ten tensors, the most that every device takes. */
export const codedVariance: Program<
  'gradient' | 'varianceWords' | 'varianceScales' | 'factors' | 'tables',
  'newWords' | 'newScales',
  Uniform
> = program({
  key: 'coded-adam-variance',
  inputs: { gradient: 'f32', varianceWords: 'u32', varianceScales: 'f32', factors: 'f32', tables: 'u32' },
  outputs: { newWords: 'u32', newScales: 'f32' },
  uniforms,
  workgroup: 64,
  declarations: `${reduction('largest', 'max(a, b)')}
${encode('variance', varianceTables)}`,
  main: recode('variance', varianceNext),
});
