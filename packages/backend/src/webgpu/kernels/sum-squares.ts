import { sumSquaresOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { partSums } from './sum-squares.wgsl.ts';

/** Entries of a workgroup before more of them are started, and the most workgroups. */
const perGroup = 8192;
const mostGroups = 256;

export const sumSquaresKernel: Kernel = kernelOf(sumSquaresOp, ({ x }, _, backend) => {
  const count = sizeOf(x);
  const groups = Math.max(1, Math.min(Math.ceil(count / perGroup), mostGroups));
  const outputs = { total: { shape: groups === 1 ? [] : [groups] } };
  const first = dispatch(backend, partSums(true), { inputs: { x }, outputs, uniforms: { count }, groups: [groups] }).total;
  if (groups === 1) return [first];
  const last = { inputs: { x: first }, outputs: { total: { shape: [] } }, uniforms: { count: groups }, groups: [1] } as const;
  const { total } = dispatch(backend, partSums(false), last);
  release(backend, first);
  return [total];
});
