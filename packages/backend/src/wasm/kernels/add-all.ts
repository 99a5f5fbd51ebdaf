import { getKernel, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { sizeOf } from './kernel.ts';

const taskSize = 4096;

/** Sums of several floats in one pass on all threads; tfjs-wasm goes over the result once a term. */
export const addAllKernels = (device: WasmDevice): KernelConfig[] => {
  const stock = getKernel('AddN', 'wasm')!;
  return [
    {
      ...stock,
      backendName: device.backendName,
      kernelFunc: (call) => {
        const terms = Object.values(call.inputs) as TensorInfo[];
        const [{ shape, dtype }] = terms as [TensorInfo];
        const size = sizeOf(shape);
        if (dtype !== 'float32' || size === 0) return stock.kernelFunc(call);
        const out = device.output(shape);
        const table = device.shared(terms.length * 4);
        device.words(table, terms.length).set(terms.map(device.address));
        // A term costs about what eight multiply-adds do: memory is what it waits for.
        device.run('addAll', [table, terms.length, device.address(out), size, taskSize], {
          tasks: Math.ceil(size / taskSize),
          work: size * terms.length * 8,
        });
        return out;
      },
    },
  ];
};
