import { sumSquaresOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** Entries of one task; the runs follow from the shapes alone, and with them every bit of the sum. */
const runLength = 65_536;

/** All tensors in one call of the kernel: a step's gradients are many and mostly small. */
export const sumSquaresKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<string, TensorInfo>>, object>(device, sumSquaresOp.kernelName, (inputs) => {
    const out = device.output([]);
    const runs = Object.values(inputs).flatMap((tensor) => {
      const [at, size] = [device.address(tensor), sizeOf(tensor.shape)];
      return Array.from({ length: Math.ceil(size / runLength) }, (_, i) => [
        at + 4 * runLength * i,
        Math.min(runLength, size - runLength * i),
      ]);
    });
    const table = device.shared(runs.length * 16);
    const found = table + runs.length * 8;
    device.words(table, runs.length * 2).set(runs.flat());
    device.run('sumSquares', [table, found], { tasks: runs.length, work: runs.reduce((sum, [, count]) => sum + count!, 0) * 4 });
    const sums = new Float64Array(device.words(found, runs.length * 2).buffer, found, runs.length);
    device.floats(out)[0] = sums.reduce((sum, each) => sum + each, 0);
    return out;
  }),
];
