import type { DataType, KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

interface Attributes {
  readonly dtype: DataType;
  readonly depth: number;
  readonly onValue: number;
  readonly offValue: number;
}

/** tfjs-wasm writes integers into a tensor that it calls float32. */
export const oneHotKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ indices: TensorInfo }, Attributes>(device, 'OneHot', ({ indices }, { dtype, depth, onValue, offValue }) => {
    const out = device.output([...indices.shape, depth], dtype);
    const values = device.backend.typedArrayFromHeap(out) as Float32Array;
    values.fill(offValue);
    device.ints(indices).forEach((index, i) => {
      if (index >= 0 && index < depth) values[i * depth + index] = onValue;
    });
    return out;
  }),
];
