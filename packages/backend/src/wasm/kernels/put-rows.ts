import { putRowsOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'target' | 'rows', TensorInfo>>;

/** Copies of whole runs: of the rows alone where the target may be written over, which a concat would read and write as well. */
export const putRowsKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, { at: number; overwrite: boolean }>(device, putRowsOp.kernelName, ({ target, rows }, { at, overwrite }) => {
    const result = overwrite ? share(device, target) : device.output(target.shape);
    const values = device.floats(result);
    if (!overwrite) values.set(device.floats(target));
    const fresh = device.floats(rows);
    const [batch, length, ...sides] = target.shape as [number, number, ...number[]];
    const [width, run] = [sizeOf(sides), sizeOf(rows.shape.slice(1))];
    for (let i = 0; i < batch; i++) values.set(fresh.subarray(i * run, (i + 1) * run), (i * length + at) * width);
    return result;
  }),
];
