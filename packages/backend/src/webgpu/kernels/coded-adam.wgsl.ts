import { codeRows } from '../../block-code.ts';
import { program, reduction, type Program } from '../program.ts';
import { codesOfBlock } from './block-code.wgsl.ts';

type Moment = 'momentum' | 'variance';
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
const tables: Readonly<Record<Moment, Tables>> = {
  momentum: { map: 0, boundaries: 512, codes: 512 + 3 * codeRows },
  variance: { map: 256, boundaries: 512 + 2 * codeRows, codes: 512 + 5 * codeRows },
};

/** A moment before the step, by its block's scale, and the code of one after it. */
const coding = (moment: Moment): string => {
  const { map, boundaries, codes } = tables[moment];
  return `
fn old_${moment}(i: u32, scale: f32) -> f32 {
  let code = (${moment}Words[i / 4u] >> (8u * (i % 4u))) & 255u;
  return bitcast<f32>(tables[${map}u + code]) * scale;
}
fn code_${moment}(value: f32, divisor: f32) -> u32 {
  let quotient = value / divisor;
  let size = abs(quotient);
  var row = u32(clamp(i32(bitcast<u32>(size) >> 15u) - 26623, 0, ${codeRows - 1}));
  ${moment === 'momentum' ? `row += select(0u, ${codeRows}u, value < 0.0);` : ''}
  let pair = tables[${codes}u + row];
  return select(pair & 255u, pair >> 8u, size > bitcast<f32>(tables[${boundaries}u + row]));
}`;
};

/** Moments after the step, from a gradient in the tensor of that name. */
const nextFrom = (gradient: string): Readonly<Record<Moment, string>> => ({
  momentum: `old_momentum(i, momentumScale) * u.beta1 + ${gradient}[i] * u.rest1`,
  variance: `old_variance(i, varianceScale) * u.beta2 + ${gradient}[i] * ${gradient}[i] * u.rest2`,
});

interface Recoding {
  /** Moments whose codes are made. */
  readonly moments: readonly Moment[];
  /** The tensor that holds the gradient. */
  readonly gradient: string;
  /** Whether the direction is made too, from both moments before they are rounded; it may lie where the gradient does. */
  readonly directed: boolean;
  /** What becomes of a moment's new scale, `…Largest`, and of its words, `…Word`. */
  store(moment: Moment): { readonly scale: string; readonly word: string };
}

/** A block of moments: the largest of each one's new values, which is its scale, then the codes. */
const recode = ({ moments, gradient, directed, store }: Recoding): string => {
  const next = nextFrom(gradient);
  const direction = `direction[i] = ((${next.momentum}) / factors[0]) / (sqrt((${next.variance}) / factors[1]) + u.eps);`;
  const read: readonly Moment[] = directed ? ['momentum', 'variance'] : moments;
  const each = (list: readonly Moment[], text: (moment: Moment) => string): string => list.map(text).join('\n');
  return `
  let start = groupIndex * u.blockSize;
  let end = min(u.count, start + u.blockSize);
${each(read, (moment) => `  let ${moment}Scale = ${moment}Scales[groupIndex];`)}
${each(moments, (moment) => `  var ${moment}Mine = 0.0;`)}
  for (var w = start / 4u + lane; w * 4u < end; w += LANES) {
    for (var i = w * 4u; i < min(end, w * 4u + 4u); i++) {
${each(moments, (moment) => `      ${moment}Mine = max(${moment}Mine, abs(${next[moment]}));`)}
    }
  }
${each(moments, (moment) => `  let ${moment}Largest = largest(${moment}Mine, lane);`)}
  // Where scales are written over, every lane has read them.
  storageBarrier();
  if (lane == 0u) {
${each(moments, (moment) => `    ${store(moment).scale};`)}
  }${codesOfBlock(
    moments.map((moment) => ({
      name: moment,
      value: next[moment],
      scale: `${moment}Largest`,
      codeOf: `code_${moment}`,
      store: store(moment).word,
    })),
    directed ? direction : '',
  )}`;
};

/** In tensors of its own, with the old codes where the step is refused. */
const selected: Recoding['store'] = (moment) => ({
  scale: `newScales[groupIndex] = select(${moment}Scale, ${moment}Largest, applied)`,
  word: `newWords[w] = select(${moment}Words[w], ${moment}Word, applied)`,
});

const apart = `
  if (groupIndex >= u.blocks) { return; }
  let applied = factors[2] != 0.0;`;
const largest = reduction('largest', 'max(a, b)');

/** One workgroup a block, which is read again for its codes: blocks have any size. */
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
  declarations: `${largest}${coding('momentum')}${coding('variance')}`,
  main: apart + recode({ moments: ['momentum'], gradient: 'gradient', directed: true, store: selected }),
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
  declarations: `${largest}${coding('variance')}`,
  main: apart + recode({ moments: ['variance'], gradient: 'gradient', directed: false, store: selected }),
});

/** Both moments at once where they lie, and the direction where the gradient does. */
export const codedOver: Program<
  'factors' | 'tables',
  'direction' | 'momentumWords' | 'momentumScales' | 'varianceWords' | 'varianceScales',
  Uniform
> = program({
  key: 'coded-adam-over',
  inputs: { factors: 'f32', tables: 'u32' },
  outputs: { direction: 'f32', momentumWords: 'u32', momentumScales: 'f32', varianceWords: 'u32', varianceScales: 'f32' },
  uniforms,
  workgroup: 64,
  declarations: `${largest}${coding('momentum')}${coding('variance')}`,
  main: `
  if (groupIndex >= u.blocks || factors[2] == 0.0) { return; }${recode({
    moments: ['momentum', 'variance'],
    gradient: 'direction',
    directed: true,
    store: (moment) => ({
      scale: `${moment}Scales[groupIndex] = ${moment}Largest`,
      word: `${moment}Words[w] = ${moment}Word`,
    }),
  })}`,
});
