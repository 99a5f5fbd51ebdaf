import { FormatError, type Json, type RawTensor } from '@niwaki/tensor';
import { affine, type AffineGrid, type Format, type TensorSource, type Weight } from '@niwaki/weights';
import { rawOf } from './int32-fields.ts';

/**
 * The 8-bit matrices of bitsandbytes (LLM.int8, Dettmers et al. 2022) in a Hugging Face checkpoint: `weight` in I8 and `SCB`,
 * the largest |w| of each row, beside it; w = code · SCB / 127. Read as what `rtn({ bits: 8, groupSize: 'row', symmetric: true })`
 * makes, and such matrices are written. Products are those of the decoded matrix; the reference on a GPU also rounds what it
 * multiplies with, outliers excepted, as `activations({ symmetric: true, outlierThreshold: 6 })` does on top of these.
 */
export const bnb8bit: Format<Weight> = {
  name: 'bitsandbytes-8bit',
  claims: (names, path) => names.has(`${path}.weight`) && names.has(`${path}.SCB`),
  read: async (path, source) => {
    const { dtype, shape, bytes } = source.info(`${path}.weight`);
    const [out = 0, width = 0] = shape;
    if (dtype !== 'I8' || shape.length !== 2 || bytes !== out * width || bytes === 0) {
      throw new FormatError(`'${path}.weight' must be an I8 matrix, got ${dtype} [${shape}] of ${bytes} bytes`, { path, dtype, shape });
    }
    await checkLayout(path, source);
    const scales = (await readLargest(path, source, out)).map((largest) => largest / 127);
    const codes = (await source.read(`${path}.weight`)).bytes.map(turned);
    return affine(path, [out, width], { codes, scales }, { bits: 8, groupSize: width, grid: 'absmax' });
  },
  write: (weight, path) => (isOurs(weight) ? writeParts(weight, path) : undefined),
  config: (values) => {
    if (![...values.values()].some(isOurs)) return {};
    return {
      quantization_config: {
        quant_method: 'bitsandbytes',
        load_in_8bit: true,
        load_in_4bit: false,
        llm_int8_threshold: 6,
        llm_int8_skip_modules: null,
        llm_int8_enable_fp32_cpu_offload: false,
        llm_int8_has_fp16_weight: false,
      },
    } satisfies Json;
  },
};

/** Between two's complement and codes whose 0 is 128. */
const turned = (byte: number): number => byte ^ 0x80;

/** 0 is rows one after the other; other numbers are tiles of older GPU kernels. */
async function checkLayout(path: string, source: TensorSource): Promise<void> {
  const name = `${path}.weight_format`;
  if (!source.names().includes(name)) return;
  const { bytes } = await source.read(name);
  if (bytes.length === 1 && bytes[0] === 0) return;
  throw new FormatError(`'${name}' says layout ${bytes[0]}; 0, rows one after the other, is read`, { name, layout: bytes[0] });
}

async function readLargest(path: string, source: TensorSource, out: number): Promise<Float32Array> {
  const name = `${path}.SCB`;
  const { dtype, bytes } = source.info(name);
  if (dtype !== 'F32' || bytes !== 4 * out) {
    throw new FormatError(`'${name}' must be F32 of ${out} rows, got ${dtype} of ${bytes} bytes`, { name, dtype, bytes });
  }
  const largest = new Float32Array((await source.read(name)).bytes.slice().buffer);
  if (largest.every((value) => value >= 0 && value < Infinity)) return largest;
  throw new FormatError(`'${name}' holds values that are no magnitudes`, { name, help: 'The file is damaged: fetch it again.' });
}

function isOurs({ kind, shape, options, parts }: Weight): boolean {
  const { bits, groupSize, grid } = options as { readonly bits?: number; readonly groupSize?: number; readonly grid?: AffineGrid };
  return kind === 'affine' && bits === 8 && groupSize === shape[1] && grid === 'absmax' && !parts['input_scales'] && !parts['order'];
}

async function writeParts({ parts, shape }: Weight, path: string): Promise<ReadonlyMap<string, RawTensor>> {
  const codes = (await parts['qweight']!.raw()).bytes.map(turned);
  const scales = (await parts['scales']!.read().data()) as Float32Array;
  return new Map([
    [`${path}.weight`, rawOf('I8', [...shape], codes)],
    [`${path}.SCB`, rawOf('F32', [shape[0]], scales.map(largestOf))],
    [`${path}.weight_format`, rawOf('U8', [], new Uint8Array(1))],
  ]);
}

/** A magnitude that divided by 127 is the scale, bit for bit where there is one, as there is for every scale made like that. */
function largestOf(scale: number): number {
  const near = Float32Array.of(scale * 127);
  const bits = new Int32Array(near.buffer);
  while (Math.fround(near[0]! / 127) < scale) bits[0]!++;
  while (Math.fround(near[0]! / 127) > scale) bits[0]!--;
  return near[0]!;
}
