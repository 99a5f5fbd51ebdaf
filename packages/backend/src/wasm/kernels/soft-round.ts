import { softRoundGradOp, softRoundOp, undecidedGradOp, undecidedOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { runRows } from './entrywise.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Standing = Readonly<Record<'w' | 'logits' | 'scales', TensorInfo>>;
type Codes = Standing & { readonly zeros: TensorInfo };
type Backward = { readonly dy: TensorInfo };

export const softRoundKernels = (device: WasmDevice): KernelConfig[] => {
  /** kernel(...addresses, groups, entries of a group, attribute, ...) */
  const run = (kernel: string, tensors: readonly TensorInfo[], { w, scales }: Standing, attribute: number): void => {
    const rows = sizeOf(scales.shape);
    const width = sizeOf(w.shape) / rows;
    runRows(device, kernel, [...tensors.map(device.address), rows, width, attribute], { rows, width });
  };
  return [
    wasmKernel<Codes, { most: number }>(device, softRoundOp.kernelName, (inputs, { most }) => {
      const { w, logits, scales, zeros } = inputs;
      const y = device.output(w.shape);
      run('softRound', [w, logits, scales, zeros, y], inputs, most);
      return y;
    }),
    wasmKernel<Codes & Backward, { most: number }>(device, softRoundGradOp.kernelName, (inputs, { most }) => {
      const { dy, w, logits, scales, zeros } = inputs;
      const outputs = [device.output(scales.shape), device.output(logits.shape)];
      run('softRoundGrad', [dy, w, logits, scales, zeros, ...outputs], inputs, most);
      return outputs;
    }),
    wasmKernel<Standing, { sharpness: number }>(device, undecidedOp.kernelName, (inputs, { sharpness }) => {
      const { w, logits, scales } = inputs;
      const y = device.output(scales.shape);
      run('undecided', [w, logits, scales, y], inputs, sharpness);
      return y;
    }),
    wasmKernel<Standing & Backward, { sharpness: number }>(device, undecidedGradOp.kernelName, (inputs, { sharpness }) => {
      const { dy, w, logits, scales } = inputs;
      const dlogits = device.output(logits.shape);
      run('undecidedGrad', [dy, w, logits, scales, dlogits], inputs, sharpness);
      return dlogits;
    }),
  ];
};
