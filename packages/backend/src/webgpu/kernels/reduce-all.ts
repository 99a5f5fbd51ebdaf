import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { dispatch } from '../dispatch.ts';
import { release, sizeOf } from '../kernel.ts';
import type { Program } from '../program.ts';

/** One number a workgroup, which walks over `count` entries in steps of all workgroups' threads. */
export type Reduction = Program<'x', 'result', 'count'>;

const mostGroups = 256;

/**
 * A tensor to one number: by workgroups, then by one over what they found. Always in one order.
 * @param perGroup entries of a workgroup before more of them are started
 */
export function reduceAll(
  backend: WebGPUBackend,
  x: TensorInfo,
  [first, last]: readonly [Reduction, Reduction],
  perGroup: number,
): TensorInfo {
  const stage = (program: Reduction, entries: TensorInfo, groups: number): TensorInfo =>
    dispatch(backend, program, {
      inputs: { x: entries },
      outputs: { result: { shape: groups === 1 ? [] : [groups] } },
      uniforms: { count: sizeOf(entries) },
      groups: [groups],
    }).result;
  const found = stage(first, x, Math.max(1, Math.min(Math.ceil(sizeOf(x) / perGroup), mostGroups)));
  if (found.shape.length === 0) return found;
  const result = stage(last, found, 1);
  release(backend, found);
  return result;
}
