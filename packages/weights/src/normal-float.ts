import {
  add,
  cast,
  checkOneOf,
  ConfigError,
  denseParameter,
  div,
  FormatError,
  gather,
  mul,
  outOfRange,
  packBytes,
  packedBytes,
  range,
  reshape,
  slice,
  tensor1d,
  tensor2d,
  tidy,
  unpackFields,
  type AffineBits,
  type Parameter,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { affineBits } from './affine-grid.ts';
import type { Call } from './call.ts';
import { denseWeight } from './dense.ts';
import { encodeGgufBlocks } from './encode-gguf.ts';
import { encodeNormalFloat } from './encode-normal-float.ts';
import { ggufBlock } from './gguf-block.ts';
import { decodedMatMul } from './masked.ts';
import { normalFloatBook } from './normal-float-book.ts';
import { observe } from './observe.ts';
import { expectLength, untracked } from './packed.ts';
import { rowsOfTensor, type RowReader } from './rows.ts';
import type { Weight } from './weight.ts';

export interface NormalFloatOptions {
  /** Of one code. */
  readonly bits: AffineBits;
  /** Of the scale of one block. */
  readonly scaleBits: AffineBits;
  /** What the scale of a group of blocks is stored as. */
  readonly scaleType: 'float32' | 'float16' | 'bfloat16';
  /** Entries of the flattened matrix that share a block's scale. */
  readonly blockSize: number;
  /** Blocks that share a group's scale. */
  readonly groupSize: number;
}

export interface NormalFloatParts {
  /** `bits` an entry, lowest bits first. */
  readonly codes: Uint8Array;
  /** `scaleBits` a block, lowest bits first. */
  readonly scaleCodes: Uint8Array;
  /** One number a group, [1, groups]: a weight of its own, taken over. */
  readonly groupScales: Weight;
  /** The least scale of a block. */
  readonly offset: number;
}

const scaleTypes: readonly string[] = ['float32', 'float16', 'bfloat16'] satisfies NormalFloatOptions['scaleType'][];

/** @throws ConfigError naming the field, the value and the range */
export function checkNormalFloat(what: string, { bits, scaleBits, scaleType, blockSize, groupSize }: NormalFloatOptions): void {
  for (const [field, value] of Object.entries({ bits, scaleBits })) checkOneOf(what, field, value, affineBits);
  checkOneOf(what, 'scaleType', scaleType, scaleTypes);
  for (const [field, value] of Object.entries({ blockSize, groupSize })) {
    if (!(Number.isInteger(value) && value > 0)) throw outOfRange(what, field, value, 'a whole number from 1');
  }
}

/** @throws ConfigError where groups of blocks would not be whole. Allocates nothing. */
export function checkNormalFloatShape(
  path: string,
  [out, width]: readonly [number, number],
  { blockSize, groupSize }: Pick<NormalFloatOptions, 'blockSize' | 'groupSize'>,
): void {
  const size = blockSize * groupSize;
  if ((out * width) % size === 0) return;
  throw new ConfigError(`'${path}' has ${out * width} entries, which ${groupSize} blocks of ${blockSize} do not divide`, {
    path,
    shape: [out, width],
    blockSize,
    groupSize,
    help: 'Use smaller blocks or fewer of them a group, or leave this matrix out.',
  });
}

/**
 * NormalFloat codes of 2, 3, 4 or 8 bits in blocks whose scales are integers in groups (LQ-LoRA, Guo et al. 2023):
 * w = book[code] · (q · g / (2^scaleBits - 1) + offset), q the block's integer and g its group's number. Bits an entry:
 * bits + scaleBits / blockSize + (16 or 32) / (blockSize · groupSize), and 4 bytes a matrix. A product decodes the whole
 * matrix first, 4 bytes an entry and up to 12 more while it does, and keeps it in no direction.
 *
 * Parts: `codes`, `scale_codes`, those of the groups' scales under `path.group_scales.`, and `offset`.
 * @param path module path
 * @throws ConfigError for options out of range; FormatError for parts that do not fit the shape
 */
export function normalFloatWeight(
  path: string,
  shape: readonly [number, number],
  parts: NormalFloatParts,
  options: NormalFloatOptions,
): Weight {
  checkNormalFloat(`'${path}'`, options);
  checkNormalFloatShape(path, shape, options);
  const { bits, scaleBits, blockSize, groupSize } = options;
  const [out, width] = shape;
  const count = out * width;
  const blocks = count / blockSize;
  const groups = blocks / groupSize;
  const { groupScales } = parts;
  expectLength(`${path}.codes`, parts.codes, packedBytes(count, bits));
  expectLength(`${path}.scale_codes`, parts.scaleCodes, packedBytes(blocks, scaleBits));
  if (groupScales.shape.join() !== `1,${groups}` || !Number.isFinite(parts.offset)) {
    throw new FormatError(`'${path}' needs [1, ${groups}] scales and an offset, got [${groupScales.shape}] and ${parts.offset}`, { path });
  }
  const fields = (name: string, bytes: Uint8Array, logical: readonly number[]): Parameter =>
    denseParameter(`${path}.${name}`, packBytes(bytes), {
      role: 'codes',
      shape: logical,
      file: { dtype: 'U8', shape: [bytes.length], bytes: bytes.length },
    });
  const codes = fields('codes', parts.codes, shape);
  const scaleCodes = fields('scale_codes', parts.scaleCodes, [blocks]);
  const offset = denseParameter(`${path}.offset`, tensor1d([parts.offset]), { role: 'scale' });
  const book = normalFloatBook(bits);

  const groupRow = (call: Call): Tensor2D => {
    if (groupScales.matrix !== undefined) return untracked(groupScales.matrix, call) as Tensor2D;
    return groupScales.lookup!(range(0, 1, 1, 'int32') as Tensor1D, call);
  };
  const decoded = (group: Tensor2D, least: Tensor1D): Tensor2D => {
    const parts_ = unpackFields(scaleCodes.read(), { bits: scaleBits, count: blocks });
    const unit = reshape(div(group, 2 ** scaleBits - 1), [groups, 1]);
    const scales = add(mul(reshape(parts_, [groups, groupSize]), unit), least);
    const entries = gather(tensor1d(book), cast(unpackFields(codes.read(), { bits, count }), 'int32'));
    return reshape(mul(reshape(entries, [blocks, blockSize]), reshape(scales, [blocks, 1])), [out, width]) as Tensor2D;
  };
  const under = (call: Call): Tensor2D => decoded(groupRow(call), untracked(offset, call) as Tensor1D);

  const weight: Weight = {
    kind: 'normal-float',
    options: { ...options, groupScales: { kind: groupScales.kind, options: groupScales.options } },
    shape,
    parts: { codes, scale_codes: scaleCodes, ...groupScales.parts, offset },
    apply: (x, call) =>
      observe(
        weight,
        x,
        decodedMatMul(x, () => under(call)),
        call,
      ),
    dense: (rows) =>
      tidy(() => {
        const whole = decoded(groupScales.dense(), offset.read() as Tensor1D);
        return rows === undefined ? whole : slice(whole, [rows[0], 0], [rows[1] - rows[0], width]);
      }),
    lookup: (ids, call) => tidy(() => gather(under(call), ids) as Tensor2D),
    encode: (dense, target) => normalFloatOf(target, [dense.shape[0], dense.shape[1]], rowsOfTensor(dense), options),
  };
  return weight;
}

/**
 * A matrix in this form, from its rows.
 * @throws NumericError naming an entry that is not finite; ConfigError where groups of blocks would not be whole
 */
export async function normalFloatOf(
  path: string,
  shape: readonly [out: number, in_: number],
  rows: RowReader,
  options: NormalFloatOptions,
): Promise<Weight> {
  checkNormalFloat(`'${path}'`, options);
  checkNormalFloatShape(path, shape, options);
  const { groupScales, ...rest } = await encodeNormalFloat(`${path}.weight`, shape, rows, options);
  return normalFloatWeight(
    path,
    shape,
    { ...rest, groupScales: await storedScales(`${path}.group_scales`, groupScales, options) },
    options,
  );
}

async function storedScales(path: string, scales: Float32Array, { scaleType }: NormalFloatOptions): Promise<Weight> {
  const shape = [1, scales.length] as const;
  if (scaleType === 'float32') return denseWeight(denseParameter(`${path}.weight`, tensor2d(scales, [...shape]), { role: 'scale' }));
  const format = scaleType === 'float16' ? 'F16' : 'BF16';
  return ggufBlock(path, shape, format, await encodeGgufBlocks(path, shape, async () => scales, format));
}
