import { adamOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { runEntries } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'gradient' | 'momentum' | 'variance' | 'correction1' | 'correction2' | 'ok', TensorInfo>>;

/** Three results out of three operands in one pass: what fifteen tfjs ops would read and write many times. */
export const adamKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, { beta1: number; beta2: number; eps: number }>(device, adamOp.kernelName, (inputs, { beta1, beta2, eps }) => {
    const { gradient, momentum, variance, correction1, correction2, ok } = inputs;
    if (device.floats(ok)[0] === 0) return [device.output(gradient.shape), share(device, momentum), share(device, variance)];
    const outputs = [gradient, gradient, gradient].map(({ shape }) => device.output(shape));
    const addresses = [gradient, momentum, variance, correction1, correction2, ...outputs].map(device.address);
    runEntries(device, 'adam', addresses, sizeOf(gradient.shape), [beta1, beta2, eps, 1 - beta1, 1 - beta2]);
    return outputs;
  }),
];
