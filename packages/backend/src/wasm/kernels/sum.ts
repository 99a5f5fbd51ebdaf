import { getKernel, util, type KernelConfig, type TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { addAllKernels } from './add-all.ts';
import { taskRowsOf } from './entrywise.ts';
import { sizeOf } from './kernel.ts';

/**
 * Sums and means of floats. tfjs-wasm keeps one running f32 sum, whose error grows with the length (0.8% over a million
 * equal entries), and transposes where the axis is not the last.
 */
export const sumKernels = (device: WasmDevice): KernelConfig[] => [
  ...(['Sum', 'Mean'] as const).map((name) => replacement(device, name)),
  ...addAllKernels(device),
];

interface Attributes {
  readonly axis: number | readonly number[] | null;
  readonly keepDims: boolean;
}

function replacement(device: WasmDevice, kernelName: 'Sum' | 'Mean'): KernelConfig {
  const stock = getKernel(kernelName, 'wasm');
  return {
    ...stock,
    backendName: device.backendName,
    kernelFunc: (call) => {
      const x = call.inputs['x'] as TensorInfo;
      const { axis, keepDims } = call.attrs as unknown as Attributes;
      if (x.dtype !== 'float32' || sizeOf(x.shape) === 0) return stock.kernelFunc(call);
      const axes = util.parseAxisParam(axis as number[], x.shape);
      return { ...reduce(device, x, new Set(axes), kernelName === 'Mean'), shape: shapeWithout(x.shape, new Set(axes), keepDims) };
    },
  };
}

const shapeWithout = (shape: readonly number[], axes: ReadonlySet<number>, keepDims: boolean): number[] =>
  keepDims ? shape.map((side, axis) => (axes.has(axis) ? 1 : side)) : shape.filter((_, axis) => !axes.has(axis));

/** One run of neighboring axes at a time, the last first; the result's shape keeps the axes, with side 1. */
function reduce(device: WasmDevice, x: TensorInfo, axes: ReadonlySet<number>, mean: boolean): TensorInfo {
  let current: TensorInfo | undefined;
  let shape = [...x.shape];
  for (let end = shape.length; end > 0; end--) {
    if (!axes.has(end - 1)) continue;
    let start = end - 1;
    while (start > 0 && axes.has(start - 1)) start--;
    const sides = { outer: sizeOf(shape.slice(0, start)), axis: sizeOf(shape.slice(start, end)), inner: sizeOf(shape.slice(end)) };
    shape = shape.map((side, axis) => (axis >= start && axis < end ? 1 : side));
    const out = device.output(shape);
    sumAxis(device, { from: device.address(current ?? x), to: device.address(out) }, sides, mean ? sides.axis : 1);
    if (current !== undefined) device.release(current);
    current = out;
    end = start + 1;
  }
  if (current !== undefined) return current;
  device.backend.incRef(x.dataId);
  return { dataId: x.dataId, shape: x.shape, dtype: x.dtype };
}

/** to [outer, inner] = sum of from [outer, axis, inner] over its axis, divided by `divisor`. */
export function sumAxis(
  device: WasmDevice,
  { from, to }: { from: number; to: number },
  { outer, axis, inner }: { outer: number; axis: number; inner: number },
  divisor = 1,
): void {
  const work = outer * axis * inner * 2;
  if (inner === 1) {
    const taskRows = taskRowsOf(axis);
    device.run('sumRow', [from, to, outer, axis, divisor, taskRows], { tasks: Math.ceil(outer / taskRows), work });
    return;
  }
  const scratchBytes = device.kernels['sumColumnBytes']!();
  device.run('sumColumn', [from, to, axis, inner, divisor], { tasks: outer * Math.ceil(inner / (scratchBytes / 4)), work, scratchBytes });
}
