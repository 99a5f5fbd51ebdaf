import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { chooseOp } from '@niwaki/tensor';
import { valuesOf } from './mat-mul.ts';

/** The gate is in memory here, so the choice is free: one of the two, shared. */
export const chooseKernel: KernelConfig = {
  kernelName: chooseOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, backend }) => {
    const { ok, next, old } = inputs as { ok: TensorInfo; next: TensorInfo; old: TensorInfo };
    const cpu = backend as MathBackendCPU;
    const { dataId, shape, dtype } = valuesOf(cpu, ok)[0] === 0 ? old : next;
    cpu.incRef(dataId);
    return { dataId, shape, dtype };
  },
};
