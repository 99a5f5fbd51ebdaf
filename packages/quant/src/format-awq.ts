import { FormatError, packBits, unpackBits, type Json, type RawTensor } from '@niwaki/tensor';
import { affine, type Format, type Weight } from '@niwaki/weights';
import { rawOf, readScales, readWords, writtenScales, type WordMatrix } from './int32-fields.ts';
import { quantizationConfig, type QuantizationConfig } from './quantization-config.ts';

/**
 * Matrices of AutoAWQ, 4 bits in the layout 'gemm': `qweight` and `qzeros` hold eight outputs a word in the order 0, 2, 4,
 * 6, 1, 3, 5, 7, zeros as they are. The factors of the method are folded into the checkpoint's other weights, as
 * `awq({ fold: true })` does: only then the layout has a place for them. Scales are written as F16 where that loses
 * nothing, else as F32.
 */
export const awqFormat: Format<Weight> = {
  name: 'awq',
  claims: (names, path, config) =>
    names.has(`${path}.qweight`) && names.has(`${path}.scales`) && quantizationConfig(config)?.['quant_method'] === 'awq',
  read: async (path, source, config) => {
    const settings = quantizationConfig(config) ?? {};
    checkSettings(settings, path);
    const stored = await readWords(source, `${path}.qweight`);
    const [out, width] = [stored.columns * 8, stored.rows];
    const asked = settings['group_size'] ?? settings['q_group_size'] ?? 128;
    const groupSize = asked === -1 ? width : Number(asked);
    if (!(Number.isInteger(groupSize) && groupSize > 0 && width % groupSize === 0)) {
      throw new FormatError(`'${path}' has ${width} columns, which groups of ${JSON.stringify(asked)} do not divide`, {
        path,
        groupSize: asked,
      });
    }
    const groups = width / groupSize;
    const scales = await readScales(source, `${path}.scales`, [groups, out]);
    const zeroWords = await readWords(source, `${path}.qzeros`);
    if (zeroWords.rows !== groups || zeroWords.columns !== stored.columns) {
      throw new FormatError(`'${path}.qzeros' must be [${groups}, ${stored.columns}], got [${zeroWords.rows}, ${zeroWords.columns}]`, {
        path,
        expected: [groups, stored.columns],
        given: [zeroWords.rows, zeroWords.columns],
      });
    }
    const turned = new Float32Array(scales.length);
    for (let g = 0; g < groups; g++) for (let o = 0; o < out; o++) turned[o * groups + g] = scales[g * out + o]!;
    const parts = { codes: packBits(outputMajor(stored), { bits: 4 }), scales: turned, zeros: outputMajor(zeroWords) };
    return affine(path, [out, width], parts, { bits: 4, groupSize, grid: 'awq' });
  },
  write: (weight, path) => (isOurs(weight) ? writeParts(weight, path) : undefined),
  config: (values) => {
    const ours = [...values.values()].filter(isOurs);
    if (ours.length === 0) return {};
    const whole = ours.every(({ options, shape }) => groupOf(options) === shape[1]);
    const sizes = whole ? new Set([-1]) : new Set(ours.map(({ options }) => groupOf(options)));
    if (sizes.size > 1)
      throw new FormatError(`one AWQ file holds groups of one size; here are ${[...sizes]}`, {
        groupSizes: [...sizes],
        help: 'Quantize all matrices with the same groupSize.',
      });
    return {
      quantization_config: {
        quant_method: 'awq',
        bits: 4,
        group_size: [...sizes][0]!,
        zero_point: true,
        version: 'gemm',
        modules_to_not_convert: null,
      },
    } satisfies Json;
  },
};

const groupOf = (options: Json): number => (options as { readonly groupSize: number }).groupSize;

function isOurs({ kind, shape, options, parts }: Weight): boolean {
  const { bits, grid } = options as { readonly bits?: number; readonly grid?: string };
  return kind === 'affine' && bits === 4 && grid === 'awq' && !parts['input_scales'] && !parts['order'] && shape[0] % 8 === 0;
}

async function writeParts({ parts, shape: [out, width], options }: Weight, path: string): Promise<ReadonlyMap<string, RawTensor>> {
  const groups = width / groupOf(options);
  const codes = unpackBits((await parts['qweight']!.raw()).bytes, out * width, { bits: 4 });
  const zeros = (await parts['zeros']!.raw()).bytes;
  const scales = (await parts['scales']!.read().data()) as Float32Array;
  const turned = Float32Array.from({ length: scales.length }, (_, i) => scales[(i % out) * groups + Math.floor(i / out)]!);
  return new Map([
    [`${path}.qweight`, rawOf('I32', [width, out / 8], rowMajor(codes, { rows: width, columns: out / 8 }))],
    [`${path}.qzeros`, rawOf('I32', [groups, out / 8], rowMajor(zeros, { rows: groups, columns: out / 8 }))],
    [`${path}.scales`, writtenScales(turned, [groups, out])],
  ]);
}

function checkSettings(config: QuantizationConfig, path: string): void {
  const version = String(config['version'] ?? 'gemm').toLowerCase();
  const bits = config['bits'] ?? config['w_bit'] ?? 4;
  if (version !== 'gemm') throw new FormatError(`'${path}' is stored in the AWQ layout '${version}'; 'gemm' is read`, { path, version });
  if (bits !== 4) throw new FormatError(`AWQ codes have 4 bits, the config says ${JSON.stringify(bits)}`, { path, bits });
  if (config['zero_point'] === false) throw new FormatError(`'${path}': AWQ without zeros is not read`, { path });
}

/** Nibble of a word in which output k of eight lies. */
const nibbleOf = [0, 4, 1, 5, 2, 6, 3, 7];

/** [outputs, rows] out of words [rows, outputs / 8]. */
function outputMajor({ words, rows, columns }: WordMatrix): Uint8Array {
  const fields = new Uint8Array(rows * columns * 8);
  for (let r = 0; r < rows; r++) {
    for (let o = 0; o < columns * 8; o++) fields[o * rows + r] = (words[r * columns + (o >> 3)]! >>> (4 * nibbleOf[o & 7]!)) & 15;
  }
  return fields;
}

/** Words [rows, outputs / 8] out of fields [outputs, rows]. */
function rowMajor(fields: ArrayLike<number>, { rows, columns }: Omit<WordMatrix, 'words'>): Uint32Array {
  const words = new Uint32Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    for (let o = 0; o < columns * 8; o++) words[r * columns + (o >> 3)]! |= fields[o * rows + r]! << (4 * nibbleOf[o & 7]!);
  }
  return words;
}
