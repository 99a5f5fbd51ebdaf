import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { dispose, memory, tensor2d, type Tensor } from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { createCall, disposeWeight, normalFloatOf } from '../src/index.ts';

const missing = await gpuMissing();

const values = async (t: Tensor): Promise<number[]> => {
  const host = [...(await t.data())];
  t.dispose();
  return host;
};

describe.skipIf(missing)('NormalFloat on WebGPU', () => {
  it.each([
    [2, 2, 'bfloat16'],
    [3, 4, 'float32'],
    [4, 8, 'float16'],
    [8, 3, 'float32'],
  ] as const)('of %i bits, scales in %i and %s, is the matrix of the cpu', async (bits, scaleBits, scaleType) => {
    const rows = Float32Array.from({ length: 12 * 32 }, (_, i) => Math.sin(0.7 * i + 1) * (1 + (i % 7)));
    const run = async (device: 'cpu' | 'webgpu'): Promise<number[][]> => {
      await init({ device, software: true });
      const before = memory().numTensors;
      const options = { bits, scaleBits, scaleType, blockSize: 16, groupSize: 8 };
      const weight = await normalFloatOf('m', [12, 32], async () => rows, options);
      const x = tensor2d(rows.slice(0, 96), [3, 32]);
      const found = [await values(weight.dense()), await values(weight.apply(x, createCall({ batch: {} })))];
      dispose([x]);
      disposeWeight(weight);
      expect(memory().numTensors).toBe(before);
      return found;
    };
    const [expected, given] = [await run('cpu'), await run('webgpu')];
    // An ulp or two of the largest value, which is 7, and sums of 32 products of such.
    expected[0]!.forEach((value, i) => expect(Math.abs(given[0]![i]! - value)).toBeLessThan(1e-6));
    expected[1]!.forEach((value, i) => expect(Math.abs(given[1]![i]! - value)).toBeLessThan(1e-3));
  });
});
