import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { addNoiseOp, keepThreshold, noiseOp, tagOf, type NoiseAttributes } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { addNoiseProgram, noiseProgram } from './noise.wgsl.ts';

export const noiseKernel: Kernel = kernelOf(noiseOp, (_, address, backend) => [draw(backend, address)]);

export const addNoiseKernel: Kernel = kernelOf(addNoiseOp, ({ x, factor }, address, backend) => {
  const { program, each } = addNoiseProgram(address.distribution);
  return [dispatch(backend, program, { inputs: { x, factor }, outputs: { z: { shape: x.shape } }, ...launch(address, each) }).z];
});

/** [length] numbers of an address. */
export function draw(backend: WebGPUBackend, address: NoiseAttributes): TensorInfo {
  const { program, each } = noiseProgram(address.distribution);
  return dispatch(backend, program, { inputs: {}, outputs: { z: { shape: [address.length] } }, ...launch(address, each) }).z;
}

const launch = ({ distribution, length, seedLow, seedHigh, step, id, sample, keep }: NoiseAttributes, each: number) => ({
  uniforms: { seedLow, seedHigh, step, id, purpose: tagOf(distribution, sample), threshold: keepThreshold(keep), count: length },
  groups: fold(length, lanes * each),
});
