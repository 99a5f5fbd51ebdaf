import { ConfigError, ShapeError } from '../errors.ts';
import { runOp, type Op } from '../op.ts';
import { codeBuckets, codeSearch, dynamicMap } from '../packed/dynamic-map.ts';
import { blockChunks } from './block-chunks.ts';
import { packCodes, unpackBytes, whole } from './word-bytes.ts';
import {
  abs,
  add,
  cast,
  concat,
  div,
  equal,
  gather,
  greater,
  less,
  max,
  mul,
  pad,
  reshape,
  sign,
  slice,
  sqrt,
  tensor1d,
  tidy,
  type Tensor,
  type Tensor1D,
} from '../tfjs.ts';

export interface BlockCode {
  /** The map with negative values, or the one without. */
  readonly signed: boolean;
  /** Entries that share one scale; a multiple of 4, default 256. */
  readonly blockSize?: number;
}

/** A tensor as one byte an entry, four in an int32 word, lowest first, and one f32 scale a block of its flat order. */
export interface BlockQuantized {
  readonly words: Tensor1D;
  readonly scales: Tensor1D;
}

type QuantizeAttributes = Required<BlockCode> & { guard: boolean };

/**
 * Input x, f32 of any shape. Outputs [words int32 [ceil(n/4)], scales f32 [ceil(n/blockSize)]]. The reference passes
 * about 20 times over the entries, without a search: an eighth root finds the row of a table that holds the code. It packs
 * by int32 arithmetic, which tfjs rounds to f32 on WebGPU: there only the kernel is right, as it is for `dequantizeBlocksOp`.
 */
export const quantizeBlocksOp: Op<{ x: Tensor }, QuantizeAttributes> = {
  kernelName: 'NiwakiQuantizeBlocks',
  reference: ({ x }, { signed, blockSize, guard }) => {
    const tables = codeSearch({ signed, guard });
    const [base, boundary] = [tensor1d(tables.base), tensor1d(tables.boundary)];
    const parts = blockChunks(x.size, blockSize).map(({ from, count }) =>
      tidy(() => {
        const given = slice(reshape(x, [x.size]), [from], [count]);
        const rows = Math.ceil(count / blockSize);
        const blocks = reshape(pad(given, [[0, rows * blockSize - count]]), [rows, blockSize]);
        const size = abs(blocks);
        const scale = max(size, 1, true);
        const u = div(size, add(scale, cast(equal(scale, 0), 'float32')));
        const bucket = cast(mul(sqrt(sqrt(sqrt(u))), codeBuckets), 'int32');
        const row = signed ? add(bucket, mul(cast(less(blocks, 0), 'int32'), whole(codeBuckets + 1))) : bucket;
        const step = cast(greater(u, gather(boundary, row)), 'float32');
        const codes = add(gather(base, row), signed ? mul(step, sign(blocks)) : step);
        return { words: slice(packCodes(codes), [0], [Math.ceil(count / 4)]), scales: reshape(scale, [rows]) };
      }),
    );
    return [concat(parts.map(({ words }) => words)), concat(parts.map(({ scales }) => scales))];
  },
};

/** Inputs words, scales. Output [x f32 [length]]. */
export const dequantizeBlocksOp: Op<{ words: Tensor; scales: Tensor }, Required<BlockCode> & { length: number }> = {
  kernelName: 'NiwakiDequantizeBlocks',
  reference: ({ words, scales }, { signed, blockSize, length }) => {
    const map = tensor1d(dynamicMap({ signed }));
    const parts = blockChunks(length, blockSize).map(({ from, count }) =>
      tidy(() => {
        const rows = Math.ceil(count / blockSize);
        const own = slice(words as Tensor1D, [from / 4], [Math.ceil(count / 4)]);
        const codes = unpackBytes(pad(own, [[0, (rows * blockSize) / 4 - own.size]]));
        const blocks = reshape(gather(map, codes), [rows, blockSize]);
        const scaled = mul(blocks, reshape(slice(scales as Tensor1D, [from / blockSize], [rows]), [rows, 1]));
        return slice(reshape(scaled, [rows * blockSize]), [0], [count]);
      }),
    );
    return [concat(parts)];
  },
};

/**
 * Eight bits an entry in blocks of the flat order (Dettmers et al. 2022): the nearest value of the dynamic map times the
 * block's largest magnitude. 1 byte an entry and 4 a block. Not differentiable; on the device, without reading back.
 * @param options `guard`: no positive entry of an unsigned map becomes 0, default true; bitsandbytes has no such guard
 */
export function quantizeBlocks(
  x: Tensor,
  { signed, blockSize = 256, guard = true }: BlockCode & { readonly guard?: boolean },
): BlockQuantized {
  checkBlockSize(blockSize);
  if (x.dtype !== 'float32' || x.size === 0) {
    throw new ShapeError(`quantizeBlocks takes f32 with at least one entry, got ${x.dtype} [${x.shape}]`, {
      given: x.shape,
      dtype: x.dtype,
    });
  }
  const [words, scales] = runOp(quantizeBlocksOp, { x }, { signed, blockSize, guard }) as [Tensor1D, Tensor1D];
  return { words, scales };
}

/** The tensor that blocks stand for, f32 of a shape. @throws ShapeError where words or scales are not those of such a tensor */
export function dequantizeBlocks(
  { words, scales }: BlockQuantized,
  { shape, signed, blockSize = 256 }: BlockCode & { readonly shape: readonly number[] },
): Tensor {
  checkBlockSize(blockSize);
  checkBlocks({ words, scales }, shape, blockSize);
  const length = shape.reduce((product, side) => product * side, 1);
  return tidy(() => reshape(runOp(dequantizeBlocksOp, { words, scales }, { signed, blockSize, length })[0]!, [...shape]));
}

/** @throws ShapeError where words or scales are not those of a tensor of that shape */
export function checkBlocks({ words, scales }: BlockQuantized, shape: readonly number[], blockSize: number): void {
  const length = shape.reduce((product, side) => product * side, 1);
  if (words.size === Math.ceil(length / 4) && scales.size === Math.ceil(length / blockSize)) return;
  throw new ShapeError(
    `[${shape}] in blocks of ${blockSize} has ${Math.ceil(length / 4)} words and ${Math.ceil(length / blockSize)} scales, got ${words.size} and ${scales.size}`,
    { shape, blockSize, words: words.size, scales: scales.size, help: 'Restore a state with the block size it was saved with.' },
  );
}

export function checkBlockSize(blockSize: number): void {
  if (Number.isInteger(blockSize) && blockSize >= 4 && blockSize % 4 === 0) return;
  throw new ConfigError(`blockSize must be a multiple of 4, got ${blockSize}`, { blockSize });
}
