import { backend } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { distance, logits } from '../../testing/src/contract-model.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora, type LoraOptions } from '../src/index.ts';
import { adapt, type PeftSet } from '@niwaki/peft';
import { swapAdapter } from './verbs.ts';

const missing = await gpuMissing();

/** f32 sums in another order: padded products are longer. */
const tolerance = 1e-4;

/** Shaders that the device is told to compile while a function runs, whoever asks. */
async function compiledBy<T>(run: () => Promise<T>): Promise<[count: number, result: T]> {
  const { device } = backend() as unknown as { readonly device: { createComputePipeline(descriptor: object): object } };
  const given = device.createComputePipeline;
  let count = 0;
  device.createComputePipeline = (descriptor) => {
    count++;
    return given.call(device, descriptor);
  };
  try {
    const result = await run();
    return [count, result];
  } finally {
    device.createComputePipeline = given;
  }
}

async function made(options: LoraOptions, seed: number): Promise<{ model: Model; set: PeftSet }> {
  const model = await tinyLlama();
  const set = await adapt(model, lora(options), { at: ['q_proj', 'down_proj'], seed });
  perturb(set, seed);
  return { model, set };
}

describe.skipIf(missing)('swapping the values of an adapter on WebGPU', () => {
  it('compiles no shader, whatever rank and alpha the other one has', async () => {
    const before = memory().numTensors;
    const { model } = await made({ rank: 4, alpha: 8 }, 1);
    const [first] = await compiledBy(() => logits(model));
    expect(first).toBeGreaterThan(0);
    const others: LoraOptions[] = [
      { rank: 4, alpha: 3 },
      { rank: 1, alpha: 5 },
      { rank: 2, rankPattern: { down_proj: 3 }, alphaPattern: { q_proj: 9 } },
    ];
    for (const [i, options] of others.entries()) {
      const other = await made(options, i + 2);
      await swapAdapter(model, 'default', other.set);
      // Filling up with zeros was one, with the first swap that did it.
      const [compiled, swapped] = await compiledBy(() => logits(model));
      expect(compiled).toBe(0);
      const expected = await logits(other.model);
      expect(distance(swapped, expected)).toBeLessThan(tolerance);
      other.model.dispose();
    }
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
