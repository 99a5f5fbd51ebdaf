import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { bytesOf, updateGroupsOp, type UpdateGroupsAttributes } from '@niwaki/tensor';
import { updateGroupsInto } from '../update-groups.ts';
import { valuesOf } from './mat-mul.ts';

export const updateGroupsKernel: KernelConfig = {
  kernelName: updateGroupsOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const cpu = backend as MathBackendCPU;
    const { codes, scales, zeros, update } = inputs as { codes: TensorInfo; scales: TensorInfo; zeros: TensorInfo; update: TensorInfo };
    const [oldCodes, oldZeros] = [valuesOf(cpu, codes), valuesOf(cpu, zeros)];
    const oldScales = valuesOf(cpu, scales) as Float32Array;
    const [newCodes, newZeros] = [new Int32Array(oldCodes.length), new Int32Array(oldZeros.length)];
    const newScales = new Float32Array(oldScales.length);
    updateGroupsInto(
      { codes: bytesOf(oldCodes), scales: oldScales, zeros: bytesOf(oldZeros) },
      valuesOf(cpu, update) as Float32Array,
      { codes: bytesOf(newCodes), scales: newScales, zeros: bytesOf(newZeros) },
      attrs as unknown as UpdateGroupsAttributes,
    );
    return [
      cpu.makeTensorInfo([newCodes.length], 'int32', newCodes),
      cpu.makeTensorInfo([newScales.length], 'float32', newScales),
      cpu.makeTensorInfo([newZeros.length], 'int32', newZeros),
    ];
  },
};
