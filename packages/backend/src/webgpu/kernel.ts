import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { KernelConfig, NamedTensorMap, TensorInfo } from '@tensorflow/tfjs-core';
import type { Op } from '@niwaki/tensor';

/** A kernel before it is put on a backend. */
export type Kernel = Omit<KernelConfig, 'backendName'>;

type Infos<I> = { readonly [K in keyof I]: TensorInfo };

/** The kernel of one of our ops: from the same inputs and attributes the same outputs, in the same order. */
export function kernelOf<I extends NamedTensorMap, A extends object>(
  op: Op<I, A>,
  compute: (inputs: Infos<I>, attrs: A, backend: WebGPUBackend) => readonly TensorInfo[],
): Kernel {
  return {
    kernelName: op.kernelName,
    kernelFunc: ({ inputs, attrs, backend }) => [
      ...compute(inputs as unknown as Infos<I>, attrs as unknown as A, backend as WebGPUBackend),
    ],
  };
}

export const sizeOf = ({ shape }: { readonly shape: readonly number[] }): number => shape.reduce((product, side) => product * side, 1);

/** Disposes tensors that only one kernel saw; their buffers stay until its commands have run. */
export function release(backend: WebGPUBackend, ...tensors: readonly TensorInfo[]): void {
  for (const { dataId } of tensors) backend.disposeData(dataId);
}
