import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { keepThreshold, noiseOp, tagOf, type NoiseAttributes } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { noiseProgram } from './noise.wgsl.ts';

export const noiseKernel: Kernel = kernelOf(noiseOp, (_, address, backend) => [draw(backend, address)]);

/** [length] numbers of an address. */
export function draw(backend: WebGPUBackend, address: NoiseAttributes): TensorInfo {
  const { distribution, length, seedLow, seedHigh, step, id, sample, keep } = address;
  const { program, each } = noiseProgram(distribution);
  const [purpose, threshold] = [tagOf(distribution, sample), keepThreshold(keep)];
  return dispatch(backend, program, {
    inputs: {},
    outputs: { z: { shape: [length] } },
    uniforms: { seedLow, seedHigh, step, id, purpose, threshold, count: length },
    groups: fold(length, lanes * each),
  }).z;
}
