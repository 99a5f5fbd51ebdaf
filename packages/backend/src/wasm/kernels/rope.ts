import { ropeOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runRows } from './entrywise.ts';
import { wasmKernel } from './kernel.ts';

export const ropeKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'q' | 'k' | 'cos' | 'sin', TensorInfo>>, { inverse: boolean }>(
    device,
    ropeOp.kernelName,
    ({ q, k, cos, sin }, { inverse }) => {
      const [rows, heads, d] = q.shape as [number, number, number];
      const kvHeads = k.shape[1]!;
      const outputs = [device.output(q.shape), device.output(k.shape)];
      const args = [...[q, k, cos, sin, ...outputs].map(device.address), rows, heads, kvHeads, d / 2, inverse ? -1 : 1];
      runRows(device, 'rope', args, { rows, width: (heads + kvHeads) * d });
      return outputs;
    },
  ),
];
