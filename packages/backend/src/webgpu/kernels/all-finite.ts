import { allFiniteOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { finiteBits, finiteFlags } from './all-finite.wgsl.ts';

/** Entries of each thread before more workgroups are started, and the most workgroups. */
const perGroup = 4096;
const mostGroups = 256;

export const allFiniteKernel: Kernel = kernelOf(allFiniteOp, ({ x }, _, backend) => {
  const count = sizeOf(x);
  if (count === 0) return [backend.makeTensorInfo([], 'float32', new Float32Array([1]))];
  const groups = Math.min(Math.ceil(count / perGroup), mostGroups);
  const shape = groups === 1 ? [] : [groups];
  const { finite: flags } = dispatch(backend, finiteBits, {
    inputs: { x },
    outputs: { finite: { shape } },
    uniforms: { count },
    groups: [groups],
  });
  if (groups === 1) return [flags];
  const { finite } = dispatch(backend, finiteFlags, {
    inputs: { x: flags },
    outputs: { finite: { shape: [] } },
    uniforms: { count: groups },
    groups: [1],
  });
  release(backend, flags);
  return [finite];
});
