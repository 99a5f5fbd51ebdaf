import { unwrittenOp } from '@niwaki/tensor';
import type { KernelConfig } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

/** Memory as it is found. */
export const unwrittenKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<object, { shape: readonly number[] }>(device, unwrittenOp.kernelName, (_, { shape }) => [device.output(shape)]),
];
