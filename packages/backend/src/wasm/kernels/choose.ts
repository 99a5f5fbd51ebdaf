import { allFiniteOp, chooseOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

const taskSize = 65_536;

/** The gate of a step. The heap is the host's memory, so a choice is made here and copies nothing. */
export const chooseKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo }, object>(device, allFiniteOp.kernelName, ({ x }) => {
    const size = sizeOf(x.shape);
    const tasks = Math.ceil(size / taskSize);
    const found = device.shared(tasks * 4);
    device.run('finite', [device.address(x), found, size, taskSize], { tasks, work: size * 4 });
    const all = device.words(found, tasks).every((each) => each === 1);
    const out = device.output([]);
    device.floats(out)[0] = all ? 1 : 0;
    return [out];
  }),
  wasmKernel<Readonly<Record<'ok' | 'next' | 'old', TensorInfo>>, object>(device, chooseOp.kernelName, ({ ok, next, old }) => [
    share(device, device.floats(ok)[0] === 0 ? old : next),
  ]),
];
