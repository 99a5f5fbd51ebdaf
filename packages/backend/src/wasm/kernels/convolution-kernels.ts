import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { checkChannelsLast, type Attributes, type FilterAttributes, type InputAttributes } from './convolution-sizes.ts';
import { finish, type Tail, type TailAttributes } from './finish.ts';
import { wasmKernel } from './kernel.ts';

/** A kind of convolution: its name in messages, those that tfjs gives its kernels, and what computes them. */
export interface ConvolutionKind {
  readonly name: string;
  readonly kernels: Readonly<Record<'convolve' | 'fused' | 'filterGradient' | 'inputGradient', string>>;
  convolve(device: WasmDevice, x: TensorInfo, filter: TensorInfo, attributes: Attributes): TensorInfo;
  filterGradient(device: WasmDevice, x: TensorInfo, dy: TensorInfo, attributes: FilterAttributes): TensorInfo;
  inputGradient(device: WasmDevice, dy: TensorInfo, filter: TensorInfo, attributes: InputAttributes): TensorInfo;
}

type Operands = Readonly<Record<'x' | 'filter', TensorInfo>>;

/** The kernels of one kind: a convolution, the same with a bias and an activation, and its two gradients. */
export const kernelsOf = (
  device: WasmDevice,
  { name, kernels, convolve, filterGradient, inputGradient }: ConvolutionKind,
): KernelConfig[] => [
  wasmKernel<Operands, Attributes>(device, kernels.convolve, ({ x, filter }, attributes) => convolve(device, x, filter, attributes)),
  wasmKernel<Operands & Tail, Attributes & TailAttributes>(device, kernels.fused, ({ x, filter, ...tail }, attributes) => {
    checkChannelsLast(`fused ${name}`, attributes);
    return finish(device, convolve(device, x, filter, attributes), tail, attributes);
  }),
  wasmKernel<Record<'x' | 'dy', TensorInfo>, FilterAttributes>(device, kernels.filterGradient, ({ x, dy }, attributes) =>
    filterGradient(device, x, dy, attributes),
  ),
  wasmKernel<Record<'dy' | 'filter', TensorInfo>, InputAttributes>(device, kernels.inputGradient, ({ dy, filter }, attributes) =>
    inputGradient(device, dy, filter, attributes),
  ),
];
