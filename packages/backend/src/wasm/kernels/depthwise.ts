import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { kernelsOf } from './convolution-kernels.ts';
import { checkChannelsLast, checkFloats, shareSizes, sizesOf, sumOfSlabs, tapsOf } from './convolution-sizes.ts';
import type { Attributes, FilterAttributes, InputAttributes, Sizes } from './convolution-sizes.ts';
import { sizeOf } from './kernel.ts';

/**
 * Depthwise convolutions and their gradients along rows of the image, 16 channels at a time, on all threads. tfjs-wasm has
 * neither gradient, and gives zeros where its convolution does. Scratch: a row of either image of 16 channels a thread.
 */
export const depthwiseKernels = (device: WasmDevice): KernelConfig[] =>
  kernelsOf(device, {
    name: 'depthwiseConv2d',
    kernels: {
      convolve: 'DepthwiseConv2dNative',
      fused: 'FusedDepthwiseConv2D',
      filterGradient: 'DepthwiseConv2dNativeBackpropFilter',
      inputGradient: 'DepthwiseConv2dNativeBackpropInput',
    },
    convolve,
    filterGradient,
    inputGradient,
  });

const scratchBytes = ({ kernels }: WasmDevice, sizes: Sizes): number =>
  kernels['depthwiseBytes']!(sizes.inWidth, sizes.outWidth, tapsOf(sizes));

function convolve(device: WasmDevice, x: TensorInfo, filter: TensorInfo, attributes: Attributes): TensorInfo {
  checkFloats('depthwiseConv2d', x, filter);
  checkChannelsLast('depthwiseConv2d', attributes);
  const sizes = sizesOf(x.shape, filter.shape, attributes, true);
  const { at } = shareSizes(device, sizes);
  const y = device.output(sizes.outShape);
  device.run('depthwise', [at, ...[x, filter, y].map(device.address)], {
    tasks: sizes.batchSize * sizes.outHeight,
    work: sizeOf(sizes.outShape) * tapsOf(sizes),
    scratchBytes: scratchBytes(device, sizes),
  });
  return y;
}

function filterGradient(device: WasmDevice, x: TensorInfo, dy: TensorInfo, attributes: FilterAttributes): TensorInfo {
  checkFloats('depthwiseConv2d', x, dy);
  const sizes = sizesOf(x.shape, attributes.filterShape, attributes, true);
  return sumOfSlabs(device, sizes, [x, dy], {
    kernel: 'depthwiseFilterGrad',
    blocks: device.kernels['depthwiseStrips']!(sizes.inChannels),
    length: sizes.batchSize * sizes.outHeight,
    leastSlab: 8,
    scratchBytes: scratchBytes(device, sizes),
  });
}

function inputGradient(device: WasmDevice, dy: TensorInfo, filter: TensorInfo, attributes: InputAttributes): TensorInfo {
  checkFloats('depthwiseConv2d', dy, filter);
  const sizes = sizesOf(attributes.inputShape, filter.shape, attributes, true);
  const { at } = shareSizes(device, sizes);
  const dx = device.output(attributes.inputShape);
  device.run('depthwiseInputGrad', [at, ...[dy, filter, dx].map(device.address)], {
    tasks: sizes.batchSize * sizes.inHeight,
    work: sizeOf(dy.shape) * tapsOf(sizes),
    scratchBytes: scratchBytes(device, sizes),
  });
  return dx;
}
