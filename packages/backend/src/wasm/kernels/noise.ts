import { noiseOp, type Distribution, type NoiseAttributes } from '@niwaki/tensor';
import type { KernelConfig } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';

/** As in the tag of an address (and in assembly/noise.ts). */
const codes: Readonly<Record<Distribution, number>> = { gaussian: 1, rademacher: 2, binomial64: 3, irwinhall12: 4, uniform: 5, mask: 16 };

const taskSize = 16_384;

/** Noise by its address, bit for bit what packages/tensor/src/philox.ts gives. */
export const noiseKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<object, NoiseAttributes>(
    device,
    noiseOp.kernelName,
    (_, { seedLow, seedHigh, step, id, sample, distribution, length, keep }) => {
      const out = device.output([length]);
      const code = codes[distribution];
      const tag = tagOf(distribution, sample);
      device.run('noise', [device.address(out), length, code, seedLow, seedHigh, id, step, tag, thresholdOf(keep), taskSize], {
        tasks: Math.ceil(length / taskSize),
        work: length * 40,
        scratchBytes: device.kernels['noiseBytes']!(),
      });
      return [out];
    },
  ),
];

const tagOf = (distribution: Distribution, sample: number): number => ((codes[distribution] << 24) | sample) >>> 0;
const thresholdOf = (keep: number): number => Math.min(0xffff_ffff, Math.round(keep * 2 ** 32));

/** `Dropout` of assembly/dropout.ts at an address of the heap. */
export function maskWords(device: WasmDevice, at: number, { seedLow, seedHigh, id, step, sample, keep }: NoiseAttributes): void {
  const words = device.words(at, 7);
  words.set([seedLow, seedHigh, id, step, tagOf('mask', sample), thresholdOf(keep)]);
  new Float32Array(words.buffer, at + 24, 1)[0] = 1 / keep;
}
