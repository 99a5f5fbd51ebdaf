import { ropeOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runRows } from './entrywise.ts';
import { wasmKernel } from './kernel.ts';

export const ropeKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'x' | 'cos' | 'sin', TensorInfo>>, { inverse: boolean }>(
    device,
    ropeOp.kernelName,
    ({ x, cos, sin }, { inverse }) => {
      const [rows, heads, d] = x.shape as [number, number, number];
      const y = device.output(x.shape);
      runRows(device, 'rope', [...[x, cos, sin, y].map(device.address), rows, heads, d / 2, inverse ? -1 : 1], { rows, width: heads * d });
      return y;
    },
  ),
];
