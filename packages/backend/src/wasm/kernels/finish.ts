import { getKernel, type TensorInfo } from '@tensorflow/tfjs-core';
import { ConfigError } from '@niwaki/tensor';
import type { WasmDevice } from '../device.ts';

/** What tfjs's fused ops do after their product. */
export interface Tail {
  readonly bias?: TensorInfo | undefined;
  readonly preluActivationWeights?: TensorInfo | undefined;
}

export interface TailAttributes {
  readonly activation: string;
  readonly leakyreluAlpha: number;
}

const activationKernels: Readonly<Record<string, string>> = {
  relu: 'Relu',
  relu6: 'Relu6',
  sigmoid: 'Sigmoid',
  elu: 'Elu',
  leakyrelu: 'LeakyRelu',
  prelu: 'Prelu',
};

/** A result's bias and activation, by tfjs's own kernels. What it is given is released. */
export function finish(
  device: WasmDevice,
  result: TensorInfo,
  { bias, preluActivationWeights: alpha }: Tail,
  { activation, leakyreluAlpha }: TailAttributes,
): TensorInfo {
  const then = (kernelName: string, x: TensorInfo, make: (x: TensorInfo) => Record<string, TensorInfo>): TensorInfo => {
    const { kernelFunc } = getKernel(kernelName, device.backendName);
    const y = kernelFunc({ inputs: make(x), attrs: { alpha: leakyreluAlpha }, backend: device.backend }) as TensorInfo;
    device.release(x);
    return y;
  };
  let y = result;
  if (bias !== undefined) y = then('Add', y, (x) => ({ a: x, b: bias }));
  if (activation === undefined || activation === 'linear') return y;
  const kernelName = activationKernels[activation];
  if (kernelName === undefined) throw new ConfigError(`the wasm device has no activation '${activation}' to fuse`);
  return then(kernelName, y, (x) => (alpha === undefined ? { x } : { x, alpha }));
}
