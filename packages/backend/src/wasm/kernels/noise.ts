import { addNoiseOp, distributionCodes, keepThreshold, noiseOp, tagOf, type NoiseAttributes } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

const taskSize = 16_384;

/** Noise by its address, bit for bit what packages/tensor/src/philox.ts gives. */
export const noiseKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<object, NoiseAttributes>(device, noiseOp.kernelName, (_, attributes) => {
    const out = device.output([attributes.length]);
    draw(device, [0, 0, device.address(out)], attributes);
    return [out];
  }),
  wasmKernel<Readonly<Record<'x' | 'factor', TensorInfo>>, NoiseAttributes>(device, addNoiseOp.kernelName, ({ x, factor }, attributes) => {
    const out = device.output(x.shape);
    draw(device, [x, factor, out].map(device.address), attributes);
    return [out];
  }),
];

function draw(
  device: WasmDevice,
  addresses: readonly number[],
  { seedLow, seedHigh, step, id, sample, distribution, length, keep }: NoiseAttributes,
): void {
  // The same codes as in assembly/noise.ts.
  const code = distributionCodes[distribution];
  const tag = tagOf(distribution, sample);
  device.run('noise', [...addresses, length, code, seedLow, seedHigh, id, step, tag, keepThreshold(keep), taskSize], {
    tasks: Math.ceil(length / taskSize),
    work: length * 40,
    scratchBytes: device.kernels['noiseBytes']!(),
  });
}

/** `Dropout` of assembly/dropout.ts at an address of the heap. */
export function maskWords(device: WasmDevice, at: number, { seedLow, seedHigh, id, step, sample, keep }: NoiseAttributes): void {
  const words = device.words(at, 7);
  words.set([seedLow, seedHigh, id, step, tagOf('mask', sample), keepThreshold(keep)]);
  new Float32Array(words.buffer, at + 24, 1)[0] = 1 / keep;
}
