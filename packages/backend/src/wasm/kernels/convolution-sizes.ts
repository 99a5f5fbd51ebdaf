import { backend_util, type TensorInfo } from '@tensorflow/tfjs-core';
import { ConfigError } from '@niwaki/tensor';
import type { WasmDevice } from '../device.ts';
import { sizeOf } from './kernel.ts';
import { sumAxis } from './sum.ts';

/** Sides of an image or a filter, and numbers along both of its sides, as tfjs gives them. */
export type Shape = [number, number, number, number];
export type Pair = [number, number] | number;

/** What tfjs tells the kernels of a convolution or a pool. */
export interface Attributes {
  readonly strides: Pair;
  readonly pad: 'valid' | 'same' | number | backend_util.ExplicitPadding;
  readonly dimRoundingMode?: 'floor' | 'round' | 'ceil';
  readonly dilations?: Pair;
  readonly dataFormat?: 'NHWC' | 'NCHW';
}
export type FilterAttributes = Attributes & { readonly filterShape: Shape };
export type InputAttributes = Attributes & { readonly inputShape: Shape };

export type Sizes = backend_util.Conv2DInfo;

export function sizesOf(inputShape: readonly number[], filterShape: readonly number[], attributes: Attributes, depthwise = false): Sizes {
  const { strides, dilations, pad, dimRoundingMode, dataFormat = 'NHWC' } = attributes;
  const format = backend_util.convertConv2DDataFormat(dataFormat);
  const shapes = [inputShape as Shape, filterShape as Shape] as const;
  return backend_util.computeConv2DInfo(...shapes, strides, dilations ?? 1, pad, dimRoundingMode, depthwise, format);
}

export const tapsOf = ({ filterHeight, filterWidth }: Sizes): number => filterHeight * filterWidth;
export const placesOf = ({ batchSize, outHeight, outWidth }: Sizes): number => batchSize * outHeight * outWidth;

/** In the order of the class `Convolution` of assembly/convolution.ts. */
const convolutionFields = (sizes: Sizes): number[] => [
  sizes.batchSize,
  sizes.inHeight,
  sizes.inWidth,
  sizes.inChannels,
  sizes.outHeight,
  sizes.outWidth,
  sizes.outChannels,
  sizes.filterHeight,
  sizes.filterWidth,
  sizes.strideHeight,
  sizes.strideWidth,
  sizes.dilationHeight,
  sizes.dilationWidth,
  sizes.padInfo.top,
  sizes.padInfo.left,
];

const fieldBytes = 64;

/** Writes the sizes to the start of the shared scratch, and leaves `more` bytes after them. */
export function shareSizes(device: WasmDevice, sizes: Sizes, more = 0): { at: number; rest: number } {
  const fields = convolutionFields(sizes);
  const at = device.shared(fieldBytes + more);
  device.words(at, fields.length).set(fields);
  return { at, rest: at + fieldBytes };
}

export interface SlabSum {
  readonly kernel: string;
  /** Tasks of one slab. */
  readonly blocks: number;
  /** What is summed over, and how much of it is worth a task. */
  readonly length: number;
  readonly leastSlab: number;
  readonly scratchBytes: number;
}

/** Tasks that a sum is divided into at least. */
const leastTasks = 16;

/**
 * A filter's gradient as shares of equal slabs, added up at the end: a small filter alone has too few blocks for several
 * threads. The slabs follow from the shapes alone, and with them every bit of the sum.
 */
export function sumOfSlabs(
  device: WasmDevice,
  sizes: Sizes,
  images: readonly TensorInfo[],
  { kernel, blocks, length, leastSlab, scratchBytes }: SlabSum,
): TensorInfo {
  const size = sizeOf(sizes.filterShape);
  const slab = Math.max(leastSlab, Math.ceil(length / Math.ceil(leastTasks / blocks)));
  const slabs = Math.ceil(length / slab);
  const { at, rest } = shareSizes(device, sizes, slabs > 1 ? slabs * size * 4 : 0);
  const out = device.output(sizes.filterShape);
  if (length === 0) device.floats(out).fill(0);
  device.run(kernel, [at, ...images.map(device.address), slabs > 1 ? rest : device.address(out), slab], {
    tasks: slabs * blocks,
    work: size * placesOf(sizes),
    scratchBytes,
  });
  if (slabs > 1) sumAxis(device, { from: rest, to: device.address(out) }, { outer: 1, axis: slabs, inner: size });
  return out;
}

/** @throws ConfigError */
export function checkFloats(name: string, ...tensors: readonly TensorInfo[]): void {
  const other = tensors.find(({ dtype }) => dtype !== 'float32');
  if (other === undefined) return;
  throw new ConfigError(`${name}: the wasm device computes in float32 only, got ${other.dtype}`, { help: "Cast to 'float32' first." });
}

/** @throws ConfigError where channels come first */
export function checkChannelsLast(name: string, { dataFormat }: Attributes): void {
  if (dataFormat !== 'NCHW') return;
  throw new ConfigError(`${name}: the wasm device takes images with their channels last only, got 'NCHW'`, {
    dataFormat,
    help: 'Transpose to [batch, height, width, channels].',
  });
}
