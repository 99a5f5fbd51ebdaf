import { bytesOf, updateGroupsOp, type UpdateGroupsAttributes } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { updateGroupsInto, type HostGroups } from '../../update-groups.ts';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

interface Stored {
  readonly codes: TensorInfo;
  readonly scales: TensorInfo;
  readonly zeros: TensorInfo;
}

/** Updates of a matrix of 8-bit codes, in a loop of the host's over the heap: a pass instead of the reference's dozens. */
export const updateGroupsKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Stored & { update: TensorInfo }, UpdateGroupsAttributes>(
    device,
    updateGroupsOp.kernelName,
    ({ update, ...stored }, attributes) => {
      const made: Stored = {
        codes: device.output([sizeOf(stored.codes.shape)], 'int32'),
        scales: device.output([sizeOf(stored.scales.shape)]),
        zeros: device.output([sizeOf(stored.zeros.shape)], 'int32'),
      };
      // Read after the outputs are there: the heap may move as it grows.
      const host = ({ codes, scales, zeros }: Stored): HostGroups => ({
        codes: bytesOf(device.ints(codes)),
        scales: device.floats(scales),
        zeros: bytesOf(device.ints(zeros)),
      });
      updateGroupsInto(host(stored), device.floats(update), host(made), attributes);
      return [made.codes, made.scales, made.zeros];
    },
  ),
];
