import { FormatError, packBits, unpackBits, type AffineBits, type Json, type RawTensor } from '@niwaki/tensor';
import { affine, affineBits, type AffineParts, type Format, type FormatReadOptions, type TensorSource, type Weight } from '@niwaki/weights';
import { fieldOf, putField, rawOf, readScales, readWords, writtenScales, type WordMatrix } from './int32-fields.ts';
import { quantizationConfig, type QuantizationConfig } from './quantization-config.ts';

/**
 * Matrices of AutoGPTQ and GPTQModel: `qweight`, `qzeros`, `scales` and `g_idx` under the module's path. Zeros are stored
 * minus one (`checkpoint_format` 'gptq', or no label) or as they are ('gptq_v2'); where symmetric zeros say otherwise than
 * the label, they are believed and a warning is given. Written as 'gptq_v2', which holds every zero; scales as F16 where
 * that loses nothing, else as F32.
 */
export const gptqFormat: Format<Weight> = {
  name: 'gptq',
  claims: (names, path, config) =>
    names.has(`${path}.qweight`) && names.has(`${path}.scales`) && quantizationConfig(config)?.['quant_method'] !== 'awq',
  read: async (path, source, config, options) => {
    const settings = checkedSettings(quantizationConfig(config) ?? {}, path);
    const stored = await readWords(source, `${path}.qweight`);
    const shape = [stored.columns, widthOf(path, source, stored, settings.bits)] as const;
    const bits = ((stored.rows * 32) / shape[1]) as AffineBits;
    const groupSize = settings.groupSize === undefined || settings.groupSize === -1 ? shape[1] : settings.groupSize;
    const groups = Math.ceil(shape[1] / groupSize);
    const scales = await readScales(source, `${path}.scales`, [groups, shape[0]]);
    const zeros = await readZeros(path, source, { ...settings, bits, groups, out: shape[0] }, options);
    const order = await readOrder(path, source, { width: shape[1], groupSize, groups });
    const parts = arranged(stored, { shape, bits, groups, scales, zeros, order });
    return affine(path, shape, parts, { bits, groupSize, grid: parts.zeros === undefined ? 'gptq' : 'asymmetric' });
  },
  write: (weight, path) => (isOurs(weight) ? writeParts(weight, path) : undefined),
  config: (values) => {
    const ours = [...values.values()].filter(isOurs);
    if (ours.length === 0) return {};
    const bits = new Set(ours.map(({ options }) => (options as unknown as Stored).bits));
    const whole = ours.every(({ options, shape }) => (options as unknown as Stored).groupSize === shape[1]);
    const sizes = whole ? new Set([-1]) : new Set(ours.map(({ options }) => (options as unknown as Stored).groupSize));
    if (bits.size > 1 || sizes.size > 1) {
      throw new FormatError(`one GPTQ file holds one kind of codes; here are ${[...bits]} bits in groups of ${[...sizes]}`, {
        bits: [...bits],
        groupSizes: [...sizes],
        help: 'Quantize all matrices with the same bits and groupSize.',
      });
    }
    return {
      quantization_config: {
        quant_method: 'gptq',
        bits: [...bits][0]!,
        group_size: [...sizes][0]!,
        desc_act: ours.some(({ parts }) => parts['order'] !== undefined),
        sym: ours.every(({ parts }) => parts['zeros'] === undefined),
        checkpoint_format: 'gptq_v2',
        true_sequential: true,
        damp_percent: 0.01,
        static_groups: false,
        lm_head: false,
      },
    } satisfies Json;
  },
};

interface Stored {
  readonly bits: AffineBits;
  readonly groupSize: number;
}

interface Settings {
  readonly bits: number | undefined;
  readonly groupSize: number | undefined;
  readonly symmetric: boolean;
  /** What the file says of its zeros. */
  readonly label: 'gptq' | 'gptq_v2';
}

function checkedSettings(config: QuantizationConfig, path: string): Settings {
  const label = config['checkpoint_format'] ?? 'gptq';
  if ((label !== 'gptq' && label !== 'gptq_v2') || config['is_marlin_format'] === true) {
    const name = label === 'gptq' || label === 'gptq_v2' ? 'marlin' : String(label);
    throw new FormatError(`'${path}' is stored in the layout '${name}'; 'gptq' and 'gptq_v2' are read`, { path, layout: name });
  }
  const dynamic = config['dynamic'];
  const overrides = typeof dynamic === 'object' && dynamic !== null ? Object.keys(dynamic).filter((key) => !key.startsWith('-:')) : [];
  if (overrides.length > 0) {
    throw new FormatError(`the GPTQ config changes settings by layer (${overrides.join(', ')}), which is not read`, { overrides });
  }
  const bits = config['bits'];
  if (bits !== undefined && !affineBits.includes(bits as AffineBits)) {
    throw new FormatError(`GPTQ codes have 2, 3, 4 or 8 bits, the config says ${JSON.stringify(bits)}`, { bits });
  }
  const groupSize = config['group_size'];
  if (groupSize !== undefined && groupSize !== -1 && !(Number.isInteger(groupSize) && Number(groupSize) > 0)) {
    throw new FormatError(`group_size must be a whole number, or -1 for rows, got ${JSON.stringify(groupSize)}`, { groupSize });
  }
  return { bits: bits as number | undefined, groupSize: groupSize as number | undefined, symmetric: config['sym'] === true, label };
}

/** Columns of the linear map: what the words hold, and what g_idx says where it is there. */
function widthOf(path: string, source: TensorSource, { rows }: WordMatrix, bits: number | undefined): number {
  const index = source.names().includes(`${path}.g_idx`) ? source.info(`${path}.g_idx`).shape[0] : undefined;
  const width = bits === undefined ? index : (rows * 32) / bits;
  if (width !== undefined && Number.isInteger(width) && width > 0 && (index === undefined || index === width)) {
    if (affineBits.includes(((rows * 32) / width) as AffineBits)) return width;
  }
  throw new FormatError(
    `'${path}.qweight' has ${rows} rows of words, which are not ${index ?? 'whole'} columns of ${bits ?? 'known'} bits`,
    {
      path,
      rows,
      bits,
      columns: index,
    },
  );
}

interface ZeroOptions extends Settings {
  readonly bits: AffineBits;
  readonly groups: number;
  readonly out: number;
}

/** [groups · out] zeros. */
async function readZeros(
  path: string,
  source: TensorSource,
  { bits, groups, out, symmetric, label }: ZeroOptions,
  { warn }: FormatReadOptions = {},
): Promise<Uint8Array> {
  const { words, rows, columns } = await readWords(source, `${path}.qzeros`);
  if (rows !== groups || columns * 32 !== out * bits) {
    throw new FormatError(`'${path}.qzeros' must be [${groups}, ${(out * bits) / 32}], got [${rows}, ${columns}]`, {
      path,
      expected: [groups, (out * bits) / 32],
      given: [rows, columns],
    });
  }
  const stored = new Uint8Array(groups * out);
  for (let g = 0; g < groups; g++) {
    for (let o = 0; o < out; o++) stored[g * out + o] = fieldOf(words, { first: g * columns, step: 1 }, o, bits);
  }
  const middle = 2 ** (bits - 1);
  const told = symmetric ? layoutOf(stored, middle) : undefined;
  if (told !== undefined && told !== label) {
    warn?.(`'${path}' is labelled '${label}', but its symmetric zeros are stored as '${told}' stores them; the zeros are believed.`);
  }
  const offset = (told ?? label) === 'gptq' ? 1 : 0;
  return stored.map((zero) => (zero + offset) & (2 ** bits - 1));
}

/** Symmetric zeros are 2^(bits-1) all over: which layout stores them like this, where it is one of the two. */
function layoutOf(stored: Uint8Array, middle: number): 'gptq' | 'gptq_v2' | undefined {
  if (stored.every((zero) => zero === middle - 1)) return 'gptq';
  return stored.every((zero) => zero === middle) ? 'gptq_v2' : undefined;
}

/** Columns sorted by their group, where they are not yet. */
async function readOrder(
  path: string,
  source: TensorSource,
  { width, groupSize, groups }: { readonly width: number; readonly groupSize: number; readonly groups: number },
): Promise<Int32Array | undefined> {
  const name = `${path}.g_idx`;
  // Old files have none: groups are in order.
  if (!source.names().includes(name)) return undefined;
  const { dtype, shape, bytes } = source.info(name);
  if (dtype !== 'I32' || shape.join() !== `${width}` || bytes !== 4 * width) {
    throw new FormatError(`'${name}' must be I32 [${width}], got ${dtype} [${shape}]`, { name, dtype, shape });
  }
  const index = new Int32Array((await source.read(name)).bytes.slice().buffer);
  const counts = new Int32Array(groups);
  for (const [column, group] of index.entries()) {
    if (!(group >= 0 && group < groups)) {
      throw new FormatError(`'${name}' puts column ${column} into group ${group} of ${groups}`, { name, column, group, groups });
    }
    counts[group]!++;
  }
  if (index.every((group, column) => group === Math.floor(column / groupSize))) return undefined;
  const uneven = counts.findIndex((count) => count !== groupSize);
  if (uneven >= 0) {
    throw new FormatError(`'${name}' gives group ${uneven} ${counts[uneven]} columns of ${groupSize}`, { name, group: uneven });
  }
  return Int32Array.from(index.keys()).sort((a, b) => index[a]! - index[b]! || a - b);
}

interface Unpacked {
  readonly shape: readonly [out: number, in_: number];
  readonly bits: AffineBits;
  readonly groups: number;
  readonly scales: Float32Array;
  readonly zeros: Uint8Array;
  readonly order: Int32Array | undefined;
}

/** From input-major to ours: rows of outputs, groups in order. */
function arranged({ words, columns }: WordMatrix, { shape: [out, width], bits, groups, scales, zeros, order }: Unpacked): AffineParts {
  const codes = new Uint8Array(out * width);
  for (let o = 0; o < out; o++) {
    for (let k = 0; k < width; k++) codes[o * width + k] = fieldOf(words, { first: o, step: columns }, order?.[k] ?? k, bits);
  }
  const turned = <T extends Float32Array | Uint8Array>(from: T, to: T): T => {
    for (let g = 0; g < groups; g++) for (let o = 0; o < out; o++) to[o * groups + g] = from[g * out + o]!;
    return to;
  };
  const middle = 2 ** (bits - 1);
  return {
    codes: packBits(codes, { bits }),
    scales: turned(scales, new Float32Array(scales.length)),
    ...(zeros.every((zero) => zero === middle) ? {} : { zeros: turned(zeros, new Uint8Array(zeros.length)) }),
    ...(order && { order }),
  };
}

// Words must be whole along both sides, and the layout has no place for factors on the input.
function isOurs({ kind, shape, options, parts }: Weight): boolean {
  if (kind !== 'affine' || parts['input_scales'] !== undefined) return false;
  const { bits } = options as unknown as Stored;
  return shape.every((side) => (side * bits) % 32 === 0);
}

async function writeParts(weight: Weight, path: string): Promise<ReadonlyMap<string, RawTensor>> {
  const { bits, groupSize } = weight.options as unknown as Stored;
  const [out, width] = weight.shape;
  const groups = width / groupSize;
  const order = weight.parts['order'] && ((await weight.parts['order'].read().data()) as Int32Array);
  const codes = unpackBits((await weight.parts['qweight']!.raw()).bytes, out * width, { bits });
  const zeros = weight.parts['zeros'] && (await weight.parts['zeros'].raw()).bytes;
  const scales = (await weight.parts['scales']!.read().data()) as Float32Array;
  const qweight = new Uint32Array((width * bits * out) / 32);
  const index = new Int32Array(width);
  for (let k = 0; k < width; k++) {
    const column = order?.[k] ?? k;
    index[column] = Math.floor(k / groupSize);
    for (let o = 0; o < out; o++) putField(qweight, { first: o, step: out }, column, { bits, value: codes[o * width + k]! });
  }
  const words = (out * bits) / 32;
  const qzeros = new Uint32Array(groups * words);
  const turned = new Float32Array(scales.length);
  for (let g = 0; g < groups; g++) {
    for (let o = 0; o < out; o++) {
      putField(qzeros, { first: g * words, step: 1 }, o, { bits, value: zeros?.[o * groups + g] ?? 2 ** (bits - 1) });
      turned[g * out + o] = scales[o * groups + g]!;
    }
  }
  return new Map([
    [`${path}.qweight`, rawOf('I32', [(width * bits) / 32, out], qweight)],
    [`${path}.qzeros`, rawOf('I32', [groups, words], qzeros)],
    [`${path}.scales`, writtenScales(turned, [groups, out])],
    [`${path}.g_idx`, rawOf('I32', [width], index)],
  ]);
}
