import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';

type Inputs = Readonly<Record<string, TensorInfo>>;
type Attributes = Readonly<Record<string, unknown>>;

/** A kernel of the wasm device as plain inputs, attributes and outputs. */
export function wasmKernel<I extends { readonly [K in keyof I]: TensorInfo | undefined }, A extends object>(
  device: WasmDevice,
  kernelName: string,
  compute: (inputs: I, attributes: A) => TensorInfo | TensorInfo[],
): KernelConfig {
  return {
    kernelName,
    backendName: device.backendName,
    kernelFunc: ({ inputs, attrs }) => {
      device.begin();
      return compute(inputs as Inputs as unknown as I, attrs as Attributes as unknown as A);
    },
  };
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((product, side) => product * side, 1);
