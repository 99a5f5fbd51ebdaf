import { bytesOf, dequantizeBlocksOp, quantizeBlocksOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { decodeBlocks, encodeBlocks, type BlockCodeAttributes } from '../../block-code.ts';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** Optimizer state in 8 bits, in a loop of the host's over the heap: a pass instead of the reference's twenty. */
export const blockCodeKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo }, BlockCodeAttributes & { guard: boolean }>(device, quantizeBlocksOp.kernelName, ({ x }, attributes) => {
    const size = sizeOf(x.shape);
    const words = device.output([Math.ceil(size / 4)], 'int32');
    const scales = device.output([Math.ceil(size / attributes.blockSize)]);
    encodeBlocks(device.floats(x), bytesOf(device.ints(words)), device.floats(scales), attributes);
    return [words, scales];
  }),
  wasmKernel<{ words: TensorInfo; scales: TensorInfo }, BlockCodeAttributes & { length: number }>(
    device,
    dequantizeBlocksOp.kernelName,
    ({ words, scales }, attributes) => {
      const values = device.output([attributes.length]);
      decodeBlocks(bytesOf(device.ints(words)), device.floats(scales), device.floats(values), attributes);
      return [values];
    },
  ),
];
