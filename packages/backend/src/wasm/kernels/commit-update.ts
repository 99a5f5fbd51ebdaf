import { commitUpdateOp, type CommitFactors } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { runEntries } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** A value after its update in one pass, in the update's memory if it may be; where the step is refused, the old memory under another name. */
export const commitUpdateKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'old' | 'update' | 'ok', TensorInfo>>, CommitFactors & { overwrite: boolean }>(
    device,
    commitUpdateOp.kernelName,
    ({ old, update, ok }, { keep, scale, overwrite }) => {
      if (device.floats(ok)[0] === 0) return share(device, old);
      const next = overwrite ? share(device, update) : device.output(old.shape);
      runEntries(device, 'commitUpdate', [old, update, next].map(device.address), sizeOf(old.shape), [keep, scale]);
      return next;
    },
  ),
];
