import { backend_util, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { checkFloats, shareSizes, tapsOf, type Attributes, type Pair, type Shape } from './convolution-sizes.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** tfjs-wasm's own drops the gradient of every window whose largest entry is not positive. */
export const maxPoolKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Record<'dy' | 'input', TensorInfo>, Attributes & { readonly filterSize: Pair }>(
    device,
    'MaxPoolGrad',
    ({ dy, input }, { filterSize, strides, pad, dimRoundingMode }) => {
      checkFloats('maxPool', dy, input);
      const sizes = backend_util.computePool2DInfo(input.shape as Shape, filterSize, strides, 1, pad, dimRoundingMode);
      const { at } = shareSizes(device, sizes);
      const dx = device.output(input.shape);
      device.run('maxPoolGrad', [at, ...[input, dy, dx].map(device.address)], {
        tasks: sizes.batchSize * device.kernels['maxPoolStrips']!(sizes.inChannels),
        work: sizeOf(dy.shape) * tapsOf(sizes),
      });
      return dx;
    },
  ),
];
