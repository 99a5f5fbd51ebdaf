import { addProductOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { multiply } from '../gemm.ts';
import { share } from './copies.ts';
import { wasmKernel } from './kernel.ts';

/** The product's blocks are added where the sum lies. */
export const addProductKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'sum' | 'a' | 'b', TensorInfo>>, { overwrite: boolean }>(
    device,
    addProductOp.kernelName,
    ({ sum, a, b }, { overwrite }) => {
      const [rows, columns] = sum.shape as [number, number];
      const total = overwrite ? share(device, sum) : device.output(sum.shape);
      if (!overwrite) device.floats(total).set(device.floats(sum));
      const [left, right] = [
        { at: device.address(a), stride: rows, transposed: true },
        { at: device.address(b), stride: columns, transposed: false },
      ];
      multiply(device, left, right, device.address(total), { rows, columns, depth: a.shape[0]! }, { accumulate: true });
      return [total];
    },
  ),
];
