import type { TensorInfo } from '@tensorflow/tfjs-core';
import { allFiniteOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { finiteBits, finiteFlags, type FiniteStage } from './all-finite.wgsl.ts';

/** Entries of a workgroup before more of them are started, and the most of them. */
const [perGroup, mostGroups] = [4096, 256];

/** By workgroups, then by one over what they found. */
export const allFiniteKernel: Kernel = kernelOf(allFiniteOp, ({ x }, _, backend) => {
  if (sizeOf(x) === 0) return [backend.makeTensorInfo([], 'float32', new Float32Array([1]))];
  const stage = (program: FiniteStage, entries: TensorInfo, groups: number): TensorInfo =>
    dispatch(backend, program, {
      inputs: { x: entries },
      outputs: { result: { shape: groups === 1 ? [] : [groups] } },
      uniforms: { count: sizeOf(entries) },
      groups: [groups],
    }).result;
  const found = stage(finiteBits, x, Math.min(Math.ceil(sizeOf(x) / perGroup), mostGroups));
  if (found.shape.length === 0) return [found];
  const result = stage(finiteFlags, found, 1);
  release(backend, found);
  return [result];
});
