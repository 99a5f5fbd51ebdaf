import { attentionGradOp, attentionOp, type AttentionAttributes } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';
import { sumAxis } from './sum.ts';

type Inputs = Readonly<Record<'q' | 'k' | 'v' | 'from' | 'to', TensorInfo>>;
type Sizes = readonly [batch: number, time: number, keys: number, heads: number, kvHeads: number, d: number];

/** Queries of one block of the compiled kernel. */
const blockQueries = 48;

/** Tasks from which on there is enough for every thread. */
const manyTasks = 16;
/** Scratch for the query heads' parts of dk and dv, where they are summed up afterwards. */
const mostShareBytes = 16 << 20;

/** Attention that never stores its scores; see assembly/attention.ts. */
export const attentionKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, AttentionAttributes>(device, attentionOp.kernelName, ({ q, k, v, from, to }, { scale, always = 0 }) => {
    const [batch, time, keys, heads, kvHeads, d] = sizes(q, k);
    const outputs = [device.output(q.shape), device.output([batch, heads, time])];
    device.run('attention', [...[q, k, v, from, to, ...outputs].map(device.address), time, keys, heads, kvHeads, d, always, scale], {
      tasks: batch * kvHeads * Math.ceil(time / blockQueries),
      // Of one query's keys and values each is read once, and from memory: what was read since is more than a cache holds.
      work: batch * heads * time * keys * d * (time === 1 ? 8 : 1),
      scratchBytes: device.kernels['attentionBytes']!(d, heads / kvHeads),
    });
    return outputs;
  }),
  wasmKernel<Inputs & Readonly<Record<'dy' | 'y' | 'logSumExp', TensorInfo>>, AttentionAttributes>(
    device,
    attentionGradOp.kernelName,
    ({ dy, q, k, v, y, logSumExp, from, to }, { scale, always = 0 }) => {
      const [batch, time, keys, heads, kvHeads, d] = sizes(q, k);
      const outputs = [q, k, v].map(({ shape }) => device.output(shape)) as [TensorInfo, TensorInfo, TensorInfo];
      const [dq, dk, dv] = outputs.map(device.address) as [number, number, number];
      const [group, size] = [heads / kvHeads, sizeOf(k.shape)];
      // By the sizes alone, never by the threads: sums then run in one order on every machine.
      const split = group > 1 && batch * kvHeads < manyTasks && 2 * group * size * 4 <= mostShareBytes;
      const share = split ? size * 4 : 0;
      const shares = split ? device.shared(2 * group * share) : 0;
      const [toK, toV] = split ? [shares, shares + group * share] : [dk, dv];
      device.words(dq, sizeOf(q.shape)).fill(0);
      for (const at of [toK, toV]) device.words(at, split ? group * size : size).fill(0);
      const addresses = [dy, q, k, v, y, logSumExp, from, to].map(device.address);
      device.run('attentionGrad', [...addresses, dq, toK, toV, share, time, keys, heads, kvHeads, d, always, scale], {
        tasks: batch * (split ? heads : kvHeads),
        work: 2.5 * batch * heads * time * keys * d,
        scratchBytes: device.kernels['attentionGradBytes']!(d),
      });
      const sides = { outer: 1, axis: group, inner: size };
      if (split)
        for (const [source, to] of [
          [toK, dk],
          [toV, dv],
        ] as const)
          sumAxis(device, { from: source, to }, sides);
      return outputs;
    },
  ),
];

function sizes(q: TensorInfo, k: TensorInfo): Sizes {
  const [batch, time, heads, d] = q.shape as [number, number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number, number];
  return [batch, time, keys, heads, kvHeads, d];
}
