import { expandGroupsOp, pickGroupsOp, unpackFieldsOp, type FieldsOptions, type GroupsShape } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { expandInto, pickInto, unpackInto } from '../../fields.ts';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

/** Masks and places of stored entries, in a loop of the host's over the heap: a pass instead of the references' dozens. */
export const fieldKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<{ words: TensorInfo }, FieldsOptions>(device, unpackFieldsOp.kernelName, ({ words }, attributes) => {
    const fields = device.output([attributes.count]);
    unpackInto(device.ints(words), device.floats(fields), attributes);
    return [fields];
  }),
  wasmKernel<{ words: TensorInfo; values: TensorInfo }, GroupsShape>(device, expandGroupsOp.kernelName, ({ words, values }, attributes) => {
    const dense = device.output([attributes.groups * attributes.m]);
    expandInto(device.ints(words), device.floats(values), device.floats(dense), attributes);
    return [dense];
  }),
  wasmKernel<{ words: TensorInfo; dense: TensorInfo }, GroupsShape>(device, pickGroupsOp.kernelName, ({ words, dense }, attributes) => {
    const values = device.output([attributes.groups * attributes.n]);
    pickInto(device.ints(words), device.floats(dense), device.floats(values), attributes);
    return [values];
  }),
];
