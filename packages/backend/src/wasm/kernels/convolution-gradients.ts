import { backend_util, getKernel, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import { ConfigError } from '@niwaki/tensor';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';
import { sumAxis } from './sum.ts';

/**
 * Gradients of convolutions and of the largest entry of a window. tfjs-wasm has none of a filter and none of a depthwise
 * convolution, so that neither trains there; its gradient of an image is one scalar loop, and that of the largest entry is
 * wrong. Scratch: 0.7 MB a thread for the products, and at most 8 MB for the shares of a filter's gradient.
 */
export const convolutionGradientKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Record<'x' | 'dy', TensorInfo>, FilterAttributes>(device, 'Conv2DBackpropFilter', ({ x, dy }, attributes) =>
    convFilterGrad(device, x, dy, attributes),
  ),
  wasmKernel<Record<'dy' | 'filter', TensorInfo>, InputAttributes>(device, 'Conv2DBackpropInput', ({ dy, filter }, attributes) =>
    convInputGrad(device, dy, filter, attributes),
  ),
  wasmKernel<Record<'x' | 'dy', TensorInfo>, FilterAttributes>(device, 'DepthwiseConv2dNativeBackpropFilter', ({ x, dy }, attributes) =>
    depthwiseFilterGrad(device, x, dy, attributes),
  ),
  wasmKernel<Record<'dy' | 'filter', TensorInfo>, InputAttributes>(
    device,
    'DepthwiseConv2dNativeBackpropInput',
    ({ dy, filter }, attributes) => depthwiseInputGrad(device, dy, filter, attributes),
  ),
  wasmKernel<Record<'dy' | 'input', TensorInfo>, PoolAttributes>(device, 'MaxPoolGrad', ({ dy, input }, attributes) =>
    maxPoolGrad(device, dy, input, attributes),
  ),
];

type Shape = [number, number, number, number];
type Pair = [number, number] | number;

/** As tfjs gives them. */
interface Attributes {
  readonly strides: Pair;
  readonly pad: 'valid' | 'same' | number | backend_util.ExplicitPadding;
  readonly dimRoundingMode?: 'floor' | 'round' | 'ceil';
  readonly dilations?: Pair;
  readonly dataFormat?: 'NHWC' | 'NCHW';
}
type FilterAttributes = Attributes & { readonly filterShape: Shape };
type InputAttributes = Attributes & { readonly inputShape: Shape };
type PoolAttributes = Attributes & { readonly filterSize: Pair };

type Sizes = backend_util.Conv2DInfo;

function sizesOf(inputShape: readonly number[], filterShape: readonly number[], attributes: Attributes, depthwise = false): Sizes {
  const { strides, dilations = 1, pad, dimRoundingMode, dataFormat = 'NHWC' } = attributes;
  const format = backend_util.convertConv2DDataFormat(dataFormat);
  const shapes = [inputShape as Shape, filterShape as Shape] as const;
  return backend_util.computeConv2DInfo(...shapes, strides, dilations, pad, dimRoundingMode, depthwise, format);
}

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
function shareSizes(device: WasmDevice, sizes: Sizes, more = 0): { at: number; rest: number } {
  const fields = convolutionFields(sizes);
  const at = device.shared(fieldBytes + more);
  device.words(at, fields.length).set(fields);
  return { at, rest: at + fieldBytes };
}

const tapsOf = ({ filterHeight, filterWidth }: Sizes): number => filterHeight * filterWidth;
const placesOf = ({ batchSize, outHeight, outWidth }: Sizes): number => batchSize * outHeight * outWidth;

/** Blocks of a product, each a task. */
const blocksOf = ({ kernels }: WasmDevice, rows: number, columns: number): number =>
  Math.ceil(rows / kernels['convTaskRows']!()) * Math.ceil(columns / kernels['convTaskColumns']!());

function convFilterGrad(device: WasmDevice, x: TensorInfo, dy: TensorInfo, attributes: FilterAttributes): TensorInfo {
  checkFloats('conv2d', x, dy);
  const sizes = sizesOf(x.shape, attributes.filterShape, attributes);
  return withChannelsLast(device, attributes, [x, dy], (images) =>
    sumOfSlabs(device, sizes, images, {
      kernel: 'convFilterGrad',
      blocks: blocksOf(device, tapsOf(sizes) * sizes.inChannels, sizes.outChannels),
      length: placesOf(sizes),
      leastSlab: 1024,
      scratchBytes: device.kernels['convScratchBytes']!(),
    }),
  );
}

function convInputGrad(device: WasmDevice, dy: TensorInfo, filter: TensorInfo, attributes: InputAttributes): TensorInfo {
  checkFloats('conv2d', dy, filter);
  const sizes = sizesOf(attributes.inputShape, filter.shape, attributes);
  const { batchSize, inHeight, inWidth, inChannels, outChannels } = sizes;
  const dx = withChannelsLast(device, attributes, [dy], ([results]) => {
    const { at } = shareSizes(device, sizes);
    const made = device.output([batchSize, inHeight, inWidth, inChannels]);
    const rows = batchSize * inHeight * inWidth;
    device.run('convInputGrad', [at, ...[results!, filter, made].map(device.address)], {
      tasks: blocksOf(device, rows, inChannels),
      work: rows * inChannels * outChannels * tapsOf(sizes),
      scratchBytes: device.kernels['convScratchBytes']!(),
    });
    return made;
  });
  if (attributes.dataFormat !== 'NCHW') return dx;
  const first = transpose(device, dx, [0, 3, 1, 2]);
  device.release(dx);
  return first;
}

function depthwiseFilterGrad(device: WasmDevice, x: TensorInfo, dy: TensorInfo, attributes: FilterAttributes): TensorInfo {
  checkFloats('depthwiseConv2d', x, dy);
  const sizes = sizesOf(x.shape, attributes.filterShape, attributes, true);
  return sumOfSlabs(device, sizes, [x, dy], {
    kernel: 'depthwiseFilterGrad',
    blocks: device.kernels['depthwiseStrips']!(sizes.inChannels),
    length: sizes.batchSize * sizes.outHeight,
    leastSlab: 8,
    scratchBytes: depthwiseBytes(device, sizes),
  });
}

function depthwiseInputGrad(device: WasmDevice, dy: TensorInfo, filter: TensorInfo, attributes: InputAttributes): TensorInfo {
  checkFloats('depthwiseConv2d', dy, filter);
  const sizes = sizesOf(attributes.inputShape, filter.shape, attributes, true);
  const { at } = shareSizes(device, sizes);
  const dx = device.output(attributes.inputShape);
  device.run('depthwiseInputGrad', [at, ...[dy, filter, dx].map(device.address)], {
    tasks: sizes.batchSize * sizes.inHeight,
    work: sizeOf(dy.shape) * tapsOf(sizes),
    scratchBytes: depthwiseBytes(device, sizes),
  });
  return dx;
}

const depthwiseBytes = ({ kernels }: WasmDevice, sizes: Sizes): number =>
  kernels['depthwiseBytes']!(sizes.inWidth, sizes.outWidth, tapsOf(sizes));

/** tfjs-wasm's own drops the gradient of every window whose largest entry is not positive. */
function maxPoolGrad(device: WasmDevice, dy: TensorInfo, x: TensorInfo, attributes: PoolAttributes): TensorInfo {
  checkFloats('maxPool', dy, x);
  const { filterSize, strides, pad, dimRoundingMode } = attributes;
  const sizes = backend_util.computePool2DInfo(x.shape as Shape, filterSize, strides, 1, pad, dimRoundingMode);
  const { at } = shareSizes(device, sizes);
  const dx = device.output(x.shape);
  device.run('maxPoolGrad', [at, ...[x, dy, dx].map(device.address)], {
    tasks: sizes.batchSize * device.kernels['maxPoolStrips']!(sizes.inChannels),
    work: sizeOf(dy.shape) * tapsOf(sizes),
  });
  return dx;
}

interface SlabSum {
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
function sumOfSlabs(
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

/** Of images whose channels come first, copies with the channels last. */
function withChannelsLast(
  device: WasmDevice,
  { dataFormat }: Attributes,
  images: readonly TensorInfo[],
  compute: (images: readonly TensorInfo[]) => TensorInfo,
): TensorInfo {
  if (dataFormat !== 'NCHW') return compute(images);
  const copies = images.map((image) => transpose(device, image, [0, 2, 3, 1]));
  const made = compute(copies);
  copies.forEach(device.release);
  return made;
}

function transpose(device: WasmDevice, x: TensorInfo, perm: number[]): TensorInfo {
  const { kernelFunc } = getKernel('Transpose', device.backendName);
  return kernelFunc({ inputs: { x }, attrs: { perm }, backend: device.backend }) as TensorInfo;
}

function checkFloats(name: string, ...tensors: readonly TensorInfo[]): void {
  const other = tensors.find(({ dtype }) => dtype !== 'float32');
  if (other === undefined) return;
  throw new ConfigError(`${name}: the wasm device has gradients of float32 only, got ${other.dtype}`, { help: "Cast to 'float32' first." });
}
