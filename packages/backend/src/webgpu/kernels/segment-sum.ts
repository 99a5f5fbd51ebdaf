import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { getKernel, UnsortedSegmentSum, type TensorInfo } from '@tensorflow/tfjs-core';
import { dispatch } from '../dispatch.ts';
import { sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { clear, segmentSum } from './segment-sum.wgsl.ts';

/** The gradient of `gather`. tfjs's own adds by atomics in no fixed order, so that an embedding's gradient changes from run to run. */
export const unsortedSegmentSumKernel: Kernel = {
  kernelName: UnsortedSegmentSum,
  kernelFunc: (call) => {
    const { x, segmentIds } = call.inputs as { x: TensorInfo; segmentIds: TensorInfo };
    const { numSegments } = call.attrs as unknown as { numSegments: number };
    if (x.dtype !== 'float32') return getKernel(UnsortedSegmentSum, 'webgpu').kernelFunc(call);
    const backend = call.backend as WebGPUBackend;
    const rows = sizeOf(segmentIds);
    const sides = x.shape.slice(segmentIds.shape.length);
    const width = sides.reduce((product, side) => product * side, 1);
    const count = numSegments * width;
    const { sums } = dispatch(backend, clear, {
      inputs: {},
      outputs: { sums: { shape: [numSegments, ...sides] } },
      uniforms: { count },
      groups: fold(count, lanes),
    });
    if (rows === 0 || count === 0) return sums;
    const uniforms = { rows, width, segments: numSegments };
    return dispatch(backend, segmentSum, { inputs: { x, ids: segmentIds }, outputs: { sums }, uniforms, groups: fold(rows) }).sums;
  },
};
