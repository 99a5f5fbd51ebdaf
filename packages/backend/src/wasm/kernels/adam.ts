import { adamOp, type AdamAttributes } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { runEntries } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'gradient' | 'momentum' | 'variance' | 'correction1' | 'correction2' | 'ok', TensorInfo>>;
type Attributes = AdamAttributes & { readonly overwrite: boolean };

/** Three results out of three operands in one pass, where these lie if they may: what fifteen tfjs ops would read and write many times. */
export const adamKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, Attributes>(device, adamOp.kernelName, (inputs, { beta1, beta2, eps, overwrite }) => {
    const { gradient, momentum, variance, correction1, correction2, ok } = inputs;
    const written = (operand: TensorInfo): TensorInfo => (overwrite ? share(device, operand) : device.output(operand.shape));
    if (device.floats(ok)[0] === 0) return [written(gradient), share(device, momentum), share(device, variance)];
    const outputs = [gradient, momentum, variance].map(written);
    const addresses = [gradient, momentum, variance, correction1, correction2, ...outputs].map(device.address);
    runEntries(device, 'adam', addresses, sizeOf(gradient.shape), [beta1, beta2, eps, 1 - beta1, 1 - beta2]);
    return outputs;
  }),
];
