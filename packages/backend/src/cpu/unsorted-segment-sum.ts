import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import { UnsortedSegmentSum, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import { valuesOf } from './mat-mul.ts';

/** The gradient of `gather`, in one pass over x; tfjs's own compares every row with every segment. Ids outside the segments are dropped. */
export const unsortedSegmentSumKernel: KernelConfig = {
  kernelName: UnsortedSegmentSum,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const { x, segmentIds } = inputs as { x: TensorInfo; segmentIds: TensorInfo };
    const { numSegments } = attrs as unknown as { numSegments: number };
    const cpu = backend as MathBackendCPU;
    const ids = valuesOf(cpu, segmentIds);
    const values = valuesOf(cpu, x);
    const width = ids.length === 0 ? 0 : values.length / ids.length;
    const shape = [numSegments, ...x.shape.slice(segmentIds.shape.length)];
    const size = shape.reduce((product, side) => product * side, 1);
    const out = x.dtype === 'int32' ? new Int32Array(size) : new Float32Array(size);
    for (let row = 0; row < ids.length; row++) {
      const segment = ids[row]!;
      if (segment < 0 || segment >= numSegments) continue;
      for (let j = 0, from = row * width, to = segment * width; j < width; j++) out[to++]! += values[from++]!;
    }
    return cpu.makeTensorInfo(shape, x.dtype, out);
  },
};
