import { describe, expect, it } from 'vitest';
import { memory, tensor2d, withAdapters, type View } from '@niwaki/tensor';
import { forward, type Model } from '@niwaki/nn';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { siteGradientError } from '../../testing/src/site-gradient.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { lora, type LoraOptions } from '../src/index.ts';
import { adapt, mergeAdapter, unmergeAdapter } from '@niwaki/peft';

const missing = await gpuMissing();

/** f32 sums of a few hundred products in the order of the device. */
const tolerance = 1e-4;

async function logits(model: Model, view?: View): Promise<number[]> {
  const tokenIds = tensor2d([1, 2, 3, 4, 5, 6, 7, 8], [2, 4], 'int32');
  const values = forward(model, { tokenIds }, view === undefined ? {} : { view });
  const data = [...(await values.data())];
  tokenIds.dispose();
  values.dispose();
  return data;
}

const distance = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));

describe.skipIf(missing)('adapters on WebGPU', () => {
  it.each<[string, LoraOptions, string[], boolean]>([
    ['LoRA', {}, ['q_proj', 'embed_tokens'], true],
    ['DoRA', { dora: true }, ['q_proj', 'embed_tokens'], false],
    ['token rows', { trainableTokens: [2, 5] }, ['q_proj'], true],
  ])('start at the base, have their gradients, merge to the same and come off again: %s', async (_, options, at, exact) => {
    const before = memory().numTensors;
    const model = await tinyLlama();
    const base = await logits(model);
    const set = await adapt(model, lora({ rank: 2, alpha: 6, ...options }), { at });
    expect(distance(await logits(model), base)).toBeLessThan(tolerance);
    perturb(set, 1);
    for (const site of model.sites(({ path }) => set.sites.has(path)).slice(0, 2)) {
      expect((await siteGradientError(site, set.sites.get(site.path)!)) < 2e-3).toBe(exact);
    }
    const active = await logits(model);
    expect(distance(active, base)).toBeGreaterThan(0.01);
    await mergeAdapter(model);
    expect(distance(await logits(model), active)).toBeLessThan(tolerance);
    await unmergeAdapter(model);
    expect(await logits(model, withAdapters('none'))).toEqual(base);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
