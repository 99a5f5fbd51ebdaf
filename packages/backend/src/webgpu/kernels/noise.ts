import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { distributionCodes, noiseOp, type NoiseAttributes } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { noiseProgram } from './noise.wgsl.ts';

export const noiseKernel: Kernel = kernelOf(noiseOp, (_, address, backend) => [draw(backend, address)]);

/** [length] numbers of an address. */
export function draw(backend: WebGPUBackend, address: NoiseAttributes): TensorInfo {
  const { distribution, length, seedLow, seedHigh, step, id, sample, keep } = address;
  const { program, each } = noiseProgram(distribution);
  const purpose = ((distributionCodes[distribution] << 24) | sample) >>> 0;
  const threshold = Math.min(0xffffffff, Math.round(keep * 2 ** 32));
  return dispatch(backend, program, {
    inputs: {},
    outputs: { z: { shape: [length] } },
    uniforms: { seedLow, seedHigh, step, id, purpose, threshold, count: length },
    groups: fold(length, lanes * each),
  }).z;
}
