import { chooseOp } from '@niwaki/tensor';
import type { DataType, KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

type Entries = Float32Array | Int32Array | Uint8Array;

/**
 * Clones and casts. tfjs-wasm copies every clone (the tape makes one of each input), although tensors are immutable and
 * their memory is counted by reference; and it casts to bool by cutting off bits.
 */
export const copyKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo }, object>(device, 'Identity', ({ x }) => share(device, x)),
  wasmKernel<{ x: TensorInfo }, { dtype: DataType }>(device, 'Cast', ({ x }, { dtype }) => {
    if (dtype === x.dtype) return share(device, x);
    const out = device.output(x.shape, dtype);
    const source = device.backend.typedArrayFromHeap(x) as Entries;
    const target = device.backend.typedArrayFromHeap(out) as Entries;
    if (dtype === 'bool') for (let i = 0; i < source.length; i++) target[i] = source[i] === 0 ? 0 : 1;
    else target.set(source);
    return out;
  }),
  // The gate is in memory here, so the choice is free: one of the two, shared.
  wasmKernel<Readonly<Record<'ok' | 'next' | 'old', TensorInfo>>, object>(device, chooseOp.kernelName, ({ ok, next, old }) =>
    share(device, (device.backend.typedArrayFromHeap(ok) as Entries)[0] === 0 ? old : next),
  ),
];

/** The same memory under another name. */
export function share(device: WasmDevice, { dataId, shape, dtype }: TensorInfo): TensorInfo {
  device.backend.incRef(dataId);
  return { dataId, shape, dtype };
}
