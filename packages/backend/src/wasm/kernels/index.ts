import type { KernelConfig } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { gatherKernels } from './gather.ts';
import { matMulKernels } from './mat-mul.ts';

/** Everything of ours that runs on the wasm device. */
export const kernels = (device: WasmDevice): readonly KernelConfig[] => [matMulKernels, gatherKernels].flatMap((make) => make(device));
