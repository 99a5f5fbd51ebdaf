import { layerNormGradOp, layerNormOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { layerNormBackward, layerNormForward, layerNormWeightGradient, weightColumns } from './layer-norm.wgsl.ts';

export const layerNormKernel: Kernel = kernelOf(layerNormOp, ({ x, weight, bias }, { eps }, backend) => {
  const [rows, width] = x.shape as [number, number];
  const run = { inputs: { x, weight, bias }, outputs: { y: { shape: x.shape } }, uniforms: { rows, width, eps }, groups: fold(rows) };
  return [dispatch(backend, layerNormForward, run).y];
});

export const layerNormGradKernel: Kernel = kernelOf(layerNormGradOp, ({ dy, x, weight }, { eps, weightGradient }, backend) => {
  const [rows, width] = x.shape as [number, number];
  const { dx, statistics } = dispatch(backend, layerNormBackward, {
    inputs: { dy, x, weight },
    outputs: { dx: { shape: x.shape }, statistics: { shape: [rows, 2] } },
    uniforms: { rows, width, eps },
    groups: fold(rows),
  });
  const gradients = [dx];
  if (weightGradient) {
    const { dweight, dbias } = dispatch(backend, layerNormWeightGradient, {
      inputs: { dy, x, statistics },
      outputs: { dweight: { shape: [width] }, dbias: { shape: [width] } },
      uniforms: { rows, width },
      groups: [Math.ceil(width / weightColumns)],
    });
    gradients.push(dweight, dbias);
  }
  release(backend, statistics);
  return gradients;
});
