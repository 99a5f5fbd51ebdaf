import { softRoundGradOp, softRoundOp, undecidedGradOp, undecidedOp } from '@niwaki/tensor';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { softRoundBackward, softRoundForward, undecidedBackward, undecidedForward } from './soft-round.wgsl.ts';

/** `count` of the entries for a kernel with a thread an entry, of the groups for one with a workgroup a group. */
function sizes({ w, scales }: { readonly w: TensorInfo; readonly scales: TensorInfo }): {
  readonly entries: { count: number; groupSize: number };
  readonly groups: { count: number; groupSize: number };
} {
  const [size, groups] = [sizeOf(w), sizeOf(scales)];
  const groupSize = size / groups;
  return { entries: { count: size, groupSize }, groups: { count: groups, groupSize } };
}

export const softRoundKernel: Kernel = kernelOf(softRoundOp, (inputs, { most }, backend) => {
  const { entries } = sizes(inputs);
  const outputs = { y: { shape: inputs.w.shape } };
  return [dispatch(backend, softRoundForward, { inputs, outputs, uniforms: { ...entries, most }, groups: fold(entries.count, lanes) }).y];
});

export const softRoundGradKernel: Kernel = kernelOf(softRoundGradOp, (inputs, { most }, backend) => {
  const { groups } = sizes(inputs);
  const outputs = { dscales: { shape: inputs.scales.shape }, dlogits: { shape: inputs.logits.shape } };
  const made = dispatch(backend, softRoundBackward, { inputs, outputs, uniforms: { ...groups, most }, groups: fold(groups.count) });
  return [made.dscales, made.dlogits];
});

export const undecidedKernel: Kernel = kernelOf(undecidedOp, (inputs, { sharpness }, backend) => {
  const { groups } = sizes(inputs);
  const outputs = { y: { shape: inputs.scales.shape } };
  return [dispatch(backend, undecidedForward, { inputs, outputs, uniforms: { ...groups, sharpness }, groups: fold(groups.count) }).y];
});

export const undecidedGradKernel: Kernel = kernelOf(undecidedGradOp, (inputs, { sharpness }, backend) => {
  const { entries } = sizes(inputs);
  const run = {
    inputs,
    outputs: { dlogits: { shape: inputs.logits.shape } },
    uniforms: { ...entries, sharpness },
    groups: fold(entries.count, lanes),
  };
  return [dispatch(backend, undecidedBackward, run).dlogits];
});
