import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { expandGroupsOp, pickGroupsOp, unpackFieldsOp, type FieldsOptions, type GroupsShape } from '@niwaki/tensor';
import { expandInto, pickInto, unpackInto } from '../fields.ts';
import { valuesOf } from './mat-mul.ts';

/** A kernel that reads two inputs or one and fills one f32 output of a length. */
const filling = (
  kernelName: string,
  names: readonly string[],
  length: (attrs: never) => number,
  fill: (inputs: readonly (Float32Array | Int32Array)[], out: Float32Array, attrs: never) => void,
): KernelConfig => ({
  kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const cpu = backend as MathBackendCPU;
    const out = new Float32Array(length(attrs as never));
    fill(
      names.map((name) => valuesOf(cpu, inputs[name] as TensorInfo) as Float32Array | Int32Array),
      out,
      attrs as never,
    );
    return [cpu.makeTensorInfo([out.length], 'float32', out)];
  },
});

export const fieldKernels: readonly KernelConfig[] = [
  filling(
    unpackFieldsOp.kernelName,
    ['words'],
    ({ count }: FieldsOptions) => count,
    ([words], out, attrs: FieldsOptions) => unpackInto(words as Int32Array, out, attrs),
  ),
  filling(
    expandGroupsOp.kernelName,
    ['words', 'values'],
    ({ groups, m }: GroupsShape) => groups * m,
    ([words, values], out, attrs: GroupsShape) => expandInto(words as Int32Array, values as Float32Array, out, attrs),
  ),
  filling(
    pickGroupsOp.kernelName,
    ['words', 'dense'],
    ({ groups, n }: GroupsShape) => groups * n,
    ([words, dense], out, attrs: GroupsShape) => pickInto(words as Int32Array, dense as Float32Array, out, attrs),
  ),
];
