import type { TensorInfo } from '@tensorflow/tfjs-core';
import { attentionGradOp, attentionOp, type AttentionAttributes } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import {
  attentionForward,
  attentionKeyGradient,
  attentionOfOne,
  attentionQueryGradient,
  attentionRows,
  attentionStretches,
  rowLanes,
  widestOfOne,
} from './attention.wgsl.ts';

interface Sides {
  readonly batch: number;
  readonly time: number;
  readonly heads: number;
  readonly d: number;
  readonly keys: number;
  readonly kvHeads: number;
}

function sidesOf(q: TensorInfo, k: TensorInfo): Sides {
  const [batch, time, heads, d] = q.shape as [number, number, number, number];
  return { batch, time, heads, d, keys: k.shape[1]!, kvHeads: k.shape[2]! };
}

const uniformsOf = ({ time, keys, heads, kvHeads }: Sides, { scale, always = 0 }: AttentionAttributes) => ({
  time,
  keys,
  heads,
  kvHeads,
  always,
  scale,
});

/**
 * A key row's gradient is a sum over all query rows of its group, and keys are few: the rows are shared out in stretches of
 * at least so many, at most so many of them, since each is a copy of dk and dv.
 */
const [leastStretch, mostStretches] = [64, 8];

const variantOf = ({ d }: Sides, { always = 0 }: AttentionAttributes) => ({ d, led: always > 0 });

/** Groups of threads, one a query row. */
const queryGroups = ({ batch, time, heads, kvHeads }: Sides) => [Math.ceil(((heads / kvHeads) * time) / rowLanes), kvHeads, batch] as const;

export const attentionKernel: Kernel = kernelOf(attentionOp, ({ q, k, v, from, to }, attributes, backend) => {
  const sides = sidesOf(q, k);
  const variant = variantOf(sides, attributes);
  const { batch, time, heads, d } = sides;
  const one = time === 1 && d <= widestOfOne;
  const { y, logSumExp } = dispatch(backend, one ? attentionOfOne(variant) : attentionForward(variant), {
    inputs: { q, k, v, lowBound: from, highBound: to },
    outputs: { y: { shape: q.shape }, logSumExp: { shape: [batch, heads, time] } },
    uniforms: uniformsOf(sides, attributes),
    groups: one ? [heads, batch] : queryGroups(sides),
  });
  return [y, logSumExp];
});

export const attentionGradKernel: Kernel = kernelOf(attentionGradOp, ({ dy, q, k, v, y, logSumExp, from, to }, attributes, backend) => {
  const sides = sidesOf(q, k);
  const variant = variantOf(sides, attributes);
  const { batch, time, heads, keys, kvHeads } = sides;
  const rows = batch * heads * time;
  const { facts } = dispatch(backend, attentionRows(sides), {
    inputs: { dy, y, logSumExp, lowBound: from, highBound: to },
    outputs: { facts: { shape: [rows, 4], dtype: 'int32' } },
    uniforms: { rows, time, heads },
    groups: fold(rows, lanes),
  });
  const inputs = { q, k, v, dy, facts };
  const uniforms = uniformsOf(sides, attributes);
  const groups = queryGroups(sides);
  const { dq } = dispatch(backend, attentionQueryGradient(variant), { inputs, outputs: { dq: { shape: q.shape } }, uniforms, groups });
  const queryRows = (heads / kvHeads) * time;
  const parts = Math.max(1, Math.min(mostStretches, Math.ceil(queryRows / leastStretch)));
  const shape = parts === 1 ? k.shape : [parts, ...k.shape];
  const sums = dispatch(backend, attentionKeyGradient(variant), {
    inputs,
    outputs: { dk: { shape }, dv: { shape } },
    uniforms: { ...uniforms, stretch: Math.ceil(queryRows / parts) },
    groups: [Math.ceil(keys / rowLanes), parts * kvHeads, batch],
  });
  release(backend, facts);
  if (parts === 1) return [dq, sums.dk, sums.dv];
  const { dk, dv } = dispatch(backend, attentionStretches, {
    inputs: { dkParts: sums.dk, dvParts: sums.dv },
    outputs: { dk: { shape: k.shape }, dv: { shape: v.shape } },
    uniforms: { count: sizeOf(k), parts },
    groups: fold(sizeOf(k), lanes),
  });
  release(backend, sums.dk, sums.dv);
  return [dq, dk, dv];
});
