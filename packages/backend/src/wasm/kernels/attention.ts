import { attentionGradOp, attentionOp } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Inputs = Readonly<Record<'q' | 'k' | 'v' | 'from' | 'to', TensorInfo>>;
type Sizes = readonly [batch: number, time: number, keys: number, heads: number, kvHeads: number, d: number];

/** Queries of one block of the compiled kernel. */
const blockQueries = 96;

/** Attention that never stores its scores; see assembly/attention.ts. */
export const attentionKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, { scale: number }>(device, attentionOp.kernelName, ({ q, k, v, from, to }, { scale }) => {
    const [batch, time, keys, heads, kvHeads, d] = sizes(q, k);
    const outputs = [device.output(q.shape), device.output([batch, heads, time])];
    device.run('attention', [...[q, k, v, from, to, ...outputs].map(device.address), time, keys, heads, kvHeads, d, scale], {
      tasks: batch * kvHeads * Math.ceil(time / blockQueries),
      work: batch * heads * time * keys * d,
      scratchBytes: device.kernels['attentionBytes']!(d, heads / kvHeads),
    });
    return outputs;
  }),
  wasmKernel<Inputs & Readonly<Record<'dy' | 'y' | 'logSumExp', TensorInfo>>, { scale: number }>(
    device,
    attentionGradOp.kernelName,
    ({ dy, q, k, v, y, logSumExp, from, to }, { scale }) => {
      const [batch, time, keys, heads, kvHeads, d] = sizes(q, k);
      const outputs = [q, k, v].map(({ shape }) => device.output(shape));
      for (const gradient of outputs) device.words(device.address(gradient), sizeOf(gradient.shape)).fill(0);
      const addresses = [dy, q, k, v, y, logSumExp, from, to, ...outputs].map(device.address);
      device.run('attentionGrad', [...addresses, time, keys, heads, kvHeads, d, scale], {
        tasks: batch * kvHeads,
        work: 2.5 * batch * heads * time * keys * d,
        scratchBytes: device.kernels['attentionGradBytes']!(d),
      });
      return outputs;
    },
  ),
];

function sizes(q: TensorInfo, k: TensorInfo): Sizes {
  const [batch, time, heads, d] = q.shape as [number, number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number, number];
  return [batch, time, keys, heads, kvHeads, d];
}
