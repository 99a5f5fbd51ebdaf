import { getKernel, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { kernelsOf } from './convolution-kernels.ts';
import {
  checkFloats,
  placesOf,
  shareSizes,
  sizesOf,
  sumOfSlabs,
  tapsOf,
  type Attributes,
  type FilterAttributes,
  type InputAttributes,
} from './convolution-sizes.ts';
import { sizeOf } from './kernel.ts';

/**
 * Convolutions and their gradients as products whose windows are laid out a block at a time, on all threads. tfjs-wasm has
 * no gradient of a filter, so that none trains there; its gradient of an image is one scalar loop; and its convolution is
 * zeros, without a word, where a stride is larger than the filter under padding 'same'.
 * Scratch: 0.7 MB a thread, and at most 8 MB for the shares of a filter's gradient.
 */
export const convolutionKernels = (device: WasmDevice): KernelConfig[] =>
  kernelsOf(device, {
    name: 'conv2d',
    kernels: { convolve: 'Conv2D', fused: 'FusedConv2D', filterGradient: 'Conv2DBackpropFilter', inputGradient: 'Conv2DBackpropInput' },
    convolve,
    filterGradient,
    inputGradient,
  });

/** Blocks of a product, each a task. */
const blocksOf = ({ kernels }: WasmDevice, rows: number, columns: number): number =>
  Math.ceil(rows / kernels['convTaskRows']!()) * Math.ceil(columns / kernels['convTaskColumns']!());

function convolve(device: WasmDevice, x: TensorInfo, filter: TensorInfo, attributes: Attributes): TensorInfo {
  checkFloats('conv2d', x, filter);
  const sizes = sizesOf(x.shape, filter.shape, attributes);
  const { batchSize, outHeight, outWidth, outChannels } = sizes;
  const shape = [batchSize, outHeight, outWidth, outChannels];
  return withChannelsLast(device, attributes, x, (image) => {
    const { at } = shareSizes(device, sizes);
    const y = device.output(shape);
    device.run('convolve', [at, ...[image, filter, y].map(device.address)], {
      tasks: blocksOf(device, placesOf(sizes), outChannels),
      work: placesOf(sizes) * sizeOf(filter.shape),
      scratchBytes: device.kernels['convScratchBytes']!(),
    });
    return y;
  });
}

function filterGradient(device: WasmDevice, x: TensorInfo, dy: TensorInfo, attributes: FilterAttributes): TensorInfo {
  checkFloats('conv2d', x, dy);
  const sizes = sizesOf(x.shape, attributes.filterShape, attributes);
  const images = attributes.dataFormat === 'NCHW' ? [x, dy].map((image) => transpose(device, image, channelsLast)) : [x, dy];
  const gradient = sumOfSlabs(device, sizes, images, {
    kernel: 'convFilterGrad',
    blocks: blocksOf(device, tapsOf(sizes) * sizes.inChannels, sizes.outChannels),
    length: placesOf(sizes),
    leastSlab: 1024,
    scratchBytes: device.kernels['convScratchBytes']!(),
  });
  if (attributes.dataFormat === 'NCHW') images.forEach(device.release);
  return gradient;
}

function inputGradient(device: WasmDevice, dy: TensorInfo, filter: TensorInfo, attributes: InputAttributes): TensorInfo {
  checkFloats('conv2d', dy, filter);
  const sizes = sizesOf(attributes.inputShape, filter.shape, attributes);
  const { batchSize, inHeight, inWidth, inChannels } = sizes;
  const shape = [batchSize, inHeight, inWidth, inChannels];
  return withChannelsLast(device, attributes, dy, (results) => {
    const { at } = shareSizes(device, sizes);
    const dx = device.output(shape);
    const rows = batchSize * inHeight * inWidth;
    device.run('convInputGrad', [at, ...[results, filter, dx].map(device.address)], {
      tasks: blocksOf(device, rows, inChannels),
      work: rows * sizeOf(filter.shape),
      scratchBytes: device.kernels['convScratchBytes']!(),
    });
    return dx;
  });
}

const channelsLast = [0, 2, 3, 1];
const channelsFirst = [0, 3, 1, 2];

/** An image from one whose channels come first: by way of copies with the channels last. */
function withChannelsLast(
  device: WasmDevice,
  { dataFormat }: Attributes,
  image: TensorInfo,
  compute: (image: TensorInfo) => TensorInfo,
): TensorInfo {
  if (dataFormat !== 'NCHW') return compute(image);
  const copy = transpose(device, image, channelsLast);
  const made = compute(copy);
  const result = transpose(device, made, channelsFirst);
  [copy, made].forEach(device.release);
  return result;
}

function transpose(device: WasmDevice, x: TensorInfo, perm: readonly number[]): TensorInfo {
  const { kernelFunc } = getKernel('Transpose', device.backendName);
  return kernelFunc({ inputs: { x }, attrs: { perm: [...perm] }, backend: device.backend }) as TensorInfo;
}
