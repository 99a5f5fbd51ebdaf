import { addRmsNormOp, rmsNormGradOp, rmsNormOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runRows, taskRowsOf } from './entrywise.ts';
import { wasmKernel } from './kernel.ts';
import { sumAxis } from './sum.ts';

type Inputs = Readonly<Record<'x' | 'weight', TensorInfo>>;

export const rmsNormKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, { eps: number }>(device, rmsNormOp.kernelName, ({ x, weight }, { eps }) => {
    const [rows, width] = x.shape as [number, number];
    const y = device.output(x.shape);
    const [atX, atWeight, atY] = [x, weight, y].map(device.address) as [number, number, number];
    runRows(device, 'rmsNorm', [atX, 0, atWeight, 0, atY, rows, width, eps], { rows, width });
    return y;
  }),
  wasmKernel<Inputs & { readonly delta: TensorInfo }, { eps: number }>(device, addRmsNormOp.kernelName, ({ x, delta, weight }, { eps }) => {
    const [rows, width] = x.shape as [number, number];
    const outputs = [device.output(x.shape), device.output(x.shape)];
    runRows(device, 'rmsNorm', [...[x, delta, weight, ...outputs].map(device.address), rows, width, eps], { rows, width });
    return outputs;
  }),
  wasmKernel<Inputs & { readonly dy: TensorInfo; readonly beside?: TensorInfo }, { eps: number; weightGradient: boolean }>(
    device,
    rmsNormGradOp.kernelName,
    ({ dy, x, weight, beside }, { eps, weightGradient }) => {
      const [rows, width] = x.shape as [number, number];
      const dx = device.output(x.shape);
      const shares = Math.ceil(rows / taskRowsOf(width));
      const partial = weightGradient ? device.shared(shares * width * 4) : 0;
      const inputs = [dy, x, weight].map(device.address);
      const args = [...inputs, beside === undefined ? 0 : device.address(beside), device.address(dx), partial, rows, width, eps];
      runRows(device, 'rmsNormGrad', args, { rows, width });
      if (!weightGradient) return [dx];
      const dweight = device.output(weight.shape);
      sumAxis(device, { from: partial, to: device.address(dweight) }, { outer: 1, axis: shares, inner: width });
      return [dx, dweight];
    },
  ),
];
