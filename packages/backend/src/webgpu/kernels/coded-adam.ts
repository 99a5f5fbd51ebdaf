import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { codedAdamOp } from '@niwaki/tensor';
import { codeTable } from '../../block-code.ts';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { codedMomentum, codedOver, codedVariance } from './coded-adam.wgsl.ts';

/** One launch where gradient and moments may be written over, else two, instead of nine; and no moment in f32. */
export const codedAdamKernel: Kernel = kernelOf(codedAdamOp, (inputs, { beta1, beta2, eps, blockSize, guard, overwrite }, backend) => {
  const { gradient, momentumWords, momentumScales, varianceWords, varianceScales, factors } = inputs as Readonly<
    Record<'gradient' | 'momentumWords' | 'momentumScales' | 'varianceWords' | 'varianceScales' | 'factors', TensorInfo>
  >;
  const tables = tablesOf(backend, guard);
  const count = sizeOf(gradient);
  const blocks = Math.ceil(count / blockSize);
  const sides = { uniforms: { count, blocks, blockSize, beta1, beta2, rest1: 1 - beta1, rest2: 1 - beta2, eps }, groups: fold(blocks) };
  const over = overwrite ? overwritten(backend, gradient, momentumWords, momentumScales, varianceWords, varianceScales) : undefined;
  if (over !== undefined) {
    const outputs = {
      direction: over[0],
      momentumWords: over[1],
      momentumScales: over[2],
      varianceWords: over[3],
      varianceScales: over[4],
    };
    dispatch(backend, codedOver, { inputs: { factors, tables }, outputs, ...sides });
    return over;
  }
  const coded = { newWords: { shape: momentumWords.shape, dtype: 'int32' as const }, newScales: { shape: momentumScales.shape } };
  const momentum = dispatch(backend, codedMomentum, {
    inputs: { gradient, momentumWords, momentumScales, varianceWords, varianceScales, factors, tables },
    outputs: { direction: { shape: gradient.shape }, ...coded },
    ...sides,
  });
  const variance = dispatch(backend, codedVariance, {
    inputs: { gradient, varianceWords, varianceScales, factors, tables },
    outputs: coded,
    ...sides,
  });
  return [momentum.direction, momentum.newWords, momentum.newScales, variance.newWords, variance.newScales];
});

/** 141 KB a device, which stay: each parameter of each step needs them. */
const made = new WeakMap<WebGPUBackend, Map<boolean, TensorInfo>>();

function tablesOf(backend: WebGPUBackend, guard: boolean): TensorInfo {
  const known = made.get(backend) ?? new Map<boolean, TensorInfo>();
  made.set(backend, known);
  let tables = known.get(guard);
  if (tables === undefined) known.set(guard, (tables = makeTables(backend, guard)));
  return tables;
}

/** Words: both maps, both moments' boundaries, then a pair of codes a row, the one up to its boundary in the lowest byte. */
function makeTables(backend: WebGPUBackend, guard: boolean): TensorInfo {
  const both = [true, false].map((signed) => codeTable({ signed, guard }));
  const floats = both.flatMap(({ map }) => [...map]).concat(both.flatMap(({ boundaries }) => [...boundaries]));
  const pairs = both.flatMap(({ codes }) =>
    Array.from({ length: codes.length / 2 }, (_, row) => codes[2 * row]! | (codes[2 * row + 1]! << 8)),
  );
  const words = new Int32Array(floats.length + pairs.length);
  words.set(new Int32Array(Float32Array.from(floats).buffer));
  words.set(pairs, floats.length);
  return backend.makeTensorInfo([words.length], 'int32', words);
}
