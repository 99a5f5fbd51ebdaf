import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

/** tfjs-wasm takes what is within 1e-7 of 0 for 0, which is where momenta and gradients live. */
export const signKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo }, object>(device, 'Sign', ({ x }) => {
    const out = device.output(x.shape, x.dtype);
    const [from, to] = [device.backend.typedArrayFromHeap(x), device.backend.typedArrayFromHeap(out)];
    for (let i = 0; i < from.length; i++) to[i] = Math.sign(from[i]!);
    return out;
  }),
];
