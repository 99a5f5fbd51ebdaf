import { swigluGradOp, swigluOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runEntries } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'gate' | 'up', TensorInfo>>;

export const swigluKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, object>(device, swigluOp.kernelName, ({ gate, up }) => {
    const y = device.output(gate.shape);
    runEntries(device, 'swiglu', [gate, up, y].map(device.address), sizeOf(gate.shape));
    return y;
  }),
  wasmKernel<Inputs & { readonly dy: TensorInfo }, object>(device, swigluGradOp.kernelName, ({ dy, gate, up }) => {
    const outputs = [device.output(gate.shape), device.output(gate.shape)];
    runEntries(device, 'swigluGrad', [dy, gate, up, ...outputs].map(device.address), sizeOf(gate.shape));
    return outputs;
  }),
];
