import { putRowsOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'target' | 'rows' | 'at', TensorInfo>>;

/** Copies of whole runs: of the rows alone where the target may be written over, which a concat would read and write as well. */
export const putRowsKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, { lead: number; overwrite: boolean }>(device, putRowsOp.kernelName, ({ target, rows, at }, { lead, overwrite }) => {
    const result = overwrite ? share(device, target) : device.output(target.shape);
    const [batch, length, ...sides] = target.shape as [number, number, ...number[]];
    const [y, from, first] = [result, rows, at].map(device.address) as [number, number, number];
    const old = overwrite ? 0 : device.address(target);
    const size = sizeOf(overwrite ? rows.shape : target.shape);
    device.run('putRows', [y, old, from, first, length, rows.shape[1]!, sizeOf(sides), lead], { tasks: batch, work: size });
    return result;
  }),
];
