import type { TensorInfo } from '@tensorflow/tfjs-core';
import { sumSquaresOp } from '@niwaki/tensor';
import { abilitiesOf } from '../abilities.ts';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { sumOfParts, sumOfSquares } from './sum-squares.wgsl.ts';

/** Entries of a workgroup before more of them are started, and the most of them. */
const [perGroup, mostGroups] = [4096, 256];
/** Tensors of a launch where a device binds any number of them. */
const mostTensors = 14;

/** As many tensors a launch as it can bind, one launch after another adding to what was found; then a last one over that. */
export const sumSquaresKernel: Kernel = kernelOf(sumSquaresOp, (inputs, _, backend) => {
  const tensors = Object.values(inputs as Readonly<Record<string, TensorInfo>>).filter((tensor) => sizeOf(tensor) > 0);
  if (tensors.length === 0) return [backend.makeTensorInfo([], 'float32', Float32Array.of(0))];
  // Beside what was found before and what is found now.
  const each = Math.min(abilitiesOf(backend).buffers - 2, mostTensors);
  const launches = Array.from({ length: Math.ceil(tensors.length / each) }, (_, i) => tensors.slice(i * each, (i + 1) * each));
  const most = Math.max(...launches.map((some) => some.reduce((sum, tensor) => sum + sizeOf(tensor), 0)));
  const groups = Math.min(Math.ceil(most / perGroup), mostGroups);
  let found: TensorInfo | undefined;
  for (const some of launches) {
    const before = found;
    const named = some.map((tensor, i) => [`x${i}`, tensor] as const);
    found = dispatch(backend, sumOfSquares(some.length, { before: before !== undefined }), {
      inputs: { ...(before && { before }), ...Object.fromEntries(named) },
      outputs: { found: { shape: groups === 1 ? [] : [groups] } },
      uniforms: Object.fromEntries(named.map(([name, tensor]) => [`of_${name}`, sizeOf(tensor)])),
      groups: [groups],
    }).found;
    if (before !== undefined) release(backend, before);
  }
  if (groups === 1) return [found!];
  const { result } = dispatch(backend, sumOfParts, {
    inputs: { x: found! },
    outputs: { result: { shape: [] } },
    uniforms: { count: groups },
    groups: [1],
  });
  release(backend, found!);
  return [result];
});
