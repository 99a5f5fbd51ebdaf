import { crossEntropyGradOp, crossEntropyOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { runRows } from './entrywise.ts';
import { wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'logits' | 'targets', TensorInfo>>;

export const crossEntropyKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, object>(device, crossEntropyOp.kernelName, ({ logits, targets }) => {
    const [rows, width] = logits.shape as [number, number];
    const outputs = [device.output([rows]), device.output([rows])];
    runRows(device, 'crossEntropy', [...[logits, targets, ...outputs].map(device.address), rows, width], { rows, width });
    return outputs;
  }),
  wasmKernel<Inputs & Readonly<Record<'dloss' | 'logSumExp', TensorInfo>>, { overwrite: boolean }>(
    device,
    crossEntropyGradOp.kernelName,
    ({ dloss, logits, targets, logSumExp }, { overwrite }) => {
      const [rows, width] = logits.shape as [number, number];
      const dlogits = overwrite ? share(device, logits) : device.output(logits.shape);
      runRows(device, 'crossEntropyGrad', [...[dloss, logits, targets, logSumExp, dlogits].map(device.address), rows, width], {
        rows,
        width,
      });
      return [dlogits];
    },
  ),
];
