import { geluGradOp, geluOp, type GeluForm } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runEntries } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** Forms by their number in assembly/gelu.ts. */
const formNumbers: Readonly<Record<GeluForm, number>> = { erf: 0, tanh: 1 };

export const geluKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'x', TensorInfo>>, { form: GeluForm }>(device, geluOp.kernelName, ({ x }, { form }) => {
    const y = device.output(x.shape);
    runEntries(device, 'gelu', [x, y].map(device.address), sizeOf(x.shape), [formNumbers[form]]);
    return [y];
  }),
  wasmKernel<Readonly<Record<'dy' | 'x', TensorInfo>>, { form: GeluForm }>(device, geluGradOp.kernelName, ({ dy, x }, { form }) => {
    const dx = device.output(x.shape);
    runEntries(device, 'geluGrad', [dy, x, dx].map(device.address), sizeOf(x.shape), [formNumbers[form]]);
    return [dx];
  }),
];
