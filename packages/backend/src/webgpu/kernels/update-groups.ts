import { leastRange, tagOf, updateGroupsOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { updateGroups } from './update-groups.wgsl.ts';

/** Not for speed alone: tfjs computes whole numbers in f32 on WebGPU, which puts no word together. */
export const updateGroupsKernel: Kernel = kernelOf(updateGroupsOp, ({ codes, scales, zeros, update }, attributes, backend) => {
  const { length: count, groupSize, shrink, stochastic, seedLow, seedHigh, step, id, sample } = attributes;
  const groups = sizeOf(scales);
  const made = dispatch(backend, updateGroups, {
    inputs: { codes, scales, zeros, update },
    outputs: {
      newCodes: { shape: [sizeOf(codes)], dtype: 'int32' },
      newScales: { shape: [groups] },
      newZeros: { shape: [sizeOf(zeros)], dtype: 'int32' },
    },
    uniforms: {
      seedLow,
      seedHigh,
      step,
      id,
      purpose: tagOf('uniform', sample),
      stochastic: stochastic ? 1 : 0,
      count,
      groups,
      groupSize,
      shrink,
      least: leastRange,
    },
    groups: fold(Math.ceil(groups / 4)),
  });
  return [made.newCodes, made.newScales, made.newZeros];
});
