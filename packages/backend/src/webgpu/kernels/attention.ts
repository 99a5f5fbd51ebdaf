import type { TensorInfo } from '@tensorflow/tfjs-core';
import { attentionGradOp, attentionOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { attentionForward, attentionKeyGradient, attentionQueryGradient, attentionRows } from './attention.wgsl.ts';

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

const uniformsOf = ({ time, keys, heads, kvHeads }: Sides, scale: number) => ({ time, keys, heads, kvHeads, scale });

/** Groups of threads, one a query row. */
const queryGroups = ({ batch, time, heads, kvHeads }: Sides) => [Math.ceil(((heads / kvHeads) * time) / lanes), kvHeads, batch] as const;

export const attentionKernel: Kernel = kernelOf(attentionOp, ({ q, k, v, from, to }, { scale }, backend) => {
  const sides = sidesOf(q, k);
  const { batch, time, heads } = sides;
  const { y, logSumExp } = dispatch(backend, attentionForward(sides), {
    inputs: { q, k, v, lowBound: from, highBound: to },
    outputs: { y: { shape: q.shape }, logSumExp: { shape: [batch, heads, time] } },
    uniforms: uniformsOf(sides, scale),
    groups: queryGroups(sides),
  });
  return [y, logSumExp];
});

export const attentionGradKernel: Kernel = kernelOf(attentionGradOp, ({ dy, q, k, v, y, logSumExp, from, to }, { scale }, backend) => {
  const sides = sidesOf(q, k);
  const { batch, time, heads, keys, kvHeads } = sides;
  const rows = batch * heads * time;
  const { facts } = dispatch(backend, attentionRows(sides), {
    inputs: { dy, y, logSumExp, lowBound: from, highBound: to },
    outputs: { facts: { shape: [rows, 4], dtype: 'int32' } },
    uniforms: { rows, time, heads },
    groups: fold(rows, lanes),
  });
  const inputs = { q, k, v, dy, facts };
  const uniforms = uniformsOf(sides, scale);
  const groups = queryGroups(sides);
  const { dq } = dispatch(backend, attentionQueryGradient(sides), { inputs, outputs: { dq: { shape: q.shape } }, uniforms, groups });
  const { dk, dv } = dispatch(backend, attentionKeyGradient(sides), {
    inputs,
    outputs: { dk: { shape: k.shape }, dv: { shape: v.shape } },
    uniforms,
    groups: [Math.ceil(keys / lanes), kvHeads, batch],
  });
  release(backend, facts);
  return [dq, dk, dv];
});
