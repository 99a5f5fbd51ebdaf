import { expandGroupsOp, pickGroupsOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { expandGroups, pickGroups } from './groups.wgsl.ts';

export const expandGroupsKernel: Kernel = kernelOf(expandGroupsOp, ({ words, values }, { n, m, groups }, backend) => {
  const count = groups * m;
  const { dense } = dispatch(backend, expandGroups, {
    inputs: { words, values },
    outputs: { dense: { shape: [count] } },
    uniforms: { count, bits: Math.log2(m), n },
    groups: fold(count, lanes),
  });
  return [dense];
});

export const pickGroupsKernel: Kernel = kernelOf(pickGroupsOp, ({ words, dense }, { n, m, groups }, backend) => {
  const count = groups * n;
  const { values } = dispatch(backend, pickGroups, {
    inputs: { words, dense },
    outputs: { values: { shape: [count] } },
    uniforms: { count, bits: Math.log2(m), n },
    groups: fold(count, lanes),
  });
  return [values];
});
