import { addRmsNormOp, rmsNormGradOp, rmsNormOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { addRmsNormForward, rmsNormBackward, rmsNormForward, rmsNormWeightGradient, weightColumns } from './rms-norm.wgsl.ts';

export const rmsNormKernel: Kernel = kernelOf(rmsNormOp, ({ x, weight }, { eps }, backend) => {
  const [rows, width] = x.shape as [number, number];
  const run = { inputs: { x, weight }, outputs: { y: { shape: x.shape } }, uniforms: { rows, width, eps }, groups: fold(rows) };
  return [dispatch(backend, rmsNormForward, run).y];
});

export const addRmsNormKernel: Kernel = kernelOf(addRmsNormOp, ({ x, delta, weight }, { eps }, backend) => {
  const [rows, width] = x.shape as [number, number];
  const { total, y } = dispatch(backend, addRmsNormForward, {
    inputs: { x, delta, weight },
    outputs: { total: { shape: x.shape }, y: { shape: x.shape } },
    uniforms: { rows, width, eps },
    groups: fold(rows),
  });
  return [total, y];
});

export const rmsNormGradKernel: Kernel = kernelOf(rmsNormGradOp, ({ dy, x, weight, beside }, { eps, weightGradient }, backend) => {
  const [rows, width] = x.shape as [number, number];
  const { dx, reciprocal } = dispatch(backend, rmsNormBackward(beside !== undefined), {
    inputs: { dy, x, weight, ...(beside && { beside }) },
    outputs: { dx: { shape: x.shape }, reciprocal: { shape: [rows] } },
    uniforms: { rows, width, eps },
    groups: fold(rows),
  });
  const gradients = [dx];
  if (weightGradient) {
    const inputs = { dy, x, reciprocal };
    const groups = [Math.ceil(width / weightColumns)] as const;
    gradients.push(
      dispatch(backend, rmsNormWeightGradient, { inputs, outputs: { dweight: { shape: [width] } }, uniforms: { rows, width }, groups })
        .dweight,
    );
  }
  release(backend, reciprocal);
  return gradients;
});
