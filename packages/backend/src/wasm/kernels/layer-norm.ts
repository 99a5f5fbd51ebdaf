import { layerNormGradOp, layerNormOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runRows, taskRowsOf } from './entrywise.ts';
import { wasmKernel } from './kernel.ts';
import { sumAxis } from './sum.ts';

export const layerNormKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Readonly<Record<'x' | 'weight' | 'bias', TensorInfo>>, { eps: number }>(
    device,
    layerNormOp.kernelName,
    ({ x, weight, bias }, { eps }) => {
      const [rows, width] = x.shape as [number, number];
      const y = device.output(x.shape);
      runRows(device, 'layerNorm', [...[x, weight, bias, y].map(device.address), rows, width, eps], { rows, width });
      return [y];
    },
  ),
  wasmKernel<Readonly<Record<'dy' | 'x' | 'weight', TensorInfo>>, { eps: number; weightGradient: boolean }>(
    device,
    layerNormGradOp.kernelName,
    ({ dy, x, weight }, { eps, weightGradient }) => {
      const [rows, width] = x.shape as [number, number];
      const dx = device.output(x.shape);
      const shares = Math.ceil(rows / taskRowsOf(width));
      // The sums of both gradients, one after the other, are summed as one row.
      const partial = weightGradient ? device.shared((shares + 1) * 2 * width * 4) : 0;
      runRows(device, 'layerNormGrad', [...[dy, x, weight, dx].map(device.address), partial, rows, width, eps], { rows, width });
      if (!weightGradient) return [dx];
      const sums = partial + shares * 2 * width * 4;
      sumAxis(device, { from: partial, to: sums }, { outer: 1, axis: shares, inner: 2 * width });
      return [
        dx,
        ...[sums, sums + width * 4].map((at) => {
          const gradient = device.output(weight.shape);
          device.words(device.address(gradient), width).set(device.words(at, width));
          return gradient;
        }),
      ];
    },
  ),
];
