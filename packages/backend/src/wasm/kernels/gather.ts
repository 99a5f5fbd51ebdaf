import { backend_util, type KernelConfig, type Tensor, type TensorInfo } from '@tensorflow/tfjs-core';
import { ShapeError } from '@niwaki/tensor';
import type { WasmDevice } from '../device.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** Rows by index and their gradient: copies of whole runs, which tfjs-wasm does entry by entry, or not at all. */
export const gatherKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ x: TensorInfo; indices: TensorInfo }, { axis: number; batchDims: number }>(device, 'GatherV2', (inputs, attributes) =>
    gather(device, inputs, attributes),
  ),
  wasmKernel<{ x: TensorInfo; segmentIds: TensorInfo }, { numSegments: number }>(device, 'UnsortedSegmentSum', (inputs, attributes) =>
    segmentSum(device, inputs, attributes),
  ),
];

type Entries = Float32Array | Int32Array | Uint8Array;

function gather(
  device: WasmDevice,
  { x, indices }: { x: TensorInfo; indices: TensorInfo },
  { axis, batchDims }: { axis: number; batchDims: number },
): TensorInfo {
  const info = backend_util.segment_util.collectGatherOpShapeInfo(
    x as Tensor,
    indices as Tensor,
    axis < 0 ? axis + x.shape.length : axis,
    batchDims,
  );
  const out = device.output(info.outputShape, x.dtype);
  const { batchSize, outerSize, dimSize, sliceSize } = info;
  const source = device.backend.typedArrayFromHeap(x) as Entries;
  const target = device.backend.typedArrayFromHeap(out) as Entries;
  const ids = device.backend.typedArrayFromHeap(indices) as Entries;
  const perBatch = ids.length / batchSize;
  let at = 0;
  for (let batch = 0; batch < batchSize; batch++) {
    for (let outer = 0; outer < outerSize; outer++) {
      const base = (batch * outerSize + outer) * dimSize;
      for (let i = 0; i < perBatch; i++, at += sliceSize) {
        const id = ids[batch * perBatch + i]!;
        if (!(id >= 0 && id < dimSize))
          throw new ShapeError(`gather: index ${id} is outside of [0, ${dimSize})`, { index: id, axis, shape: x.shape });
        const from = (base + id) * sliceSize;
        if (sliceSize === 1) target[at] = source[from]!;
        else target.set(source.subarray(from, from + sliceSize), at);
      }
    }
  }
  return out;
}

/** Rows of x are added to the row that their id names; a negative id is dropped, as elsewhere in tfjs. */
function segmentSum(
  device: WasmDevice,
  { x, segmentIds }: { x: TensorInfo; segmentIds: TensorInfo },
  { numSegments }: { numSegments: number },
): TensorInfo {
  const tail = x.shape.slice(segmentIds.shape.length);
  const width = sizeOf(tail);
  const out = device.output([numSegments, ...tail], x.dtype);
  const sums = device.backend.typedArrayFromHeap(out) as Entries;
  const values = device.backend.typedArrayFromHeap(x) as Entries;
  const ids = device.ints(segmentIds);
  sums.fill(0);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    if (id < 0 || id >= numSegments) continue;
    const [from, to] = [i * width, id * width];
    for (let j = 0; j < width; j++) sums[to + j]! += values[from + j]!;
  }
  return out;
}
