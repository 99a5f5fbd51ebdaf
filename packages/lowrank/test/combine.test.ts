import { expect, it } from 'vitest';
import { ConfigError, memory, NotFoundError, withAdapters } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { combineAdapters, lora, type LoraOptions } from '../src/index.ts';
import { activateAdapters, adapt, deleteAdapter, setAdapterScale } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { distance, logitsOf } from './golden.ts';
import { configOf, filesOf, onTiny, perturb, rejection, rows } from './support.ts';

async function perturbed(model: Model, name: string, options: LoraOptions, at: string[]): Promise<void> {
  perturb(await adapt(model, lora(options), { at, name }), { size: 0.2, seed: name.charCodeAt(0) });
}

/** Changes of each site as one matrix. */
async function deltaOf(model: Model, name: string, path: string): Promise<Float32Array> {
  const delta = model.adapters.get(name)!.sites.get(path)!.delta!().dense();
  const values = (await delta.data()) as Float32Array;
  delta.dispose();
  return values;
}

it('gives one adapter at weight 1 as the same change, rsLoRA too', async () => {
  expect(
    await onTiny(async (model) => {
      await perturbed(model, 'rs', { rank: 16, alpha: 16, rslora: true }, ['q_proj']);
      await combineAdapters(model, { rs: 1 }, { name: 'same' });
      const path = 'model.layers.0.self_attn.q_proj';
      expect(distance(await deltaOf(model, 'same', path), await deltaOf(model, 'rs', path))).toBeLessThan(1e-6);
    }),
  ).toBe(0);
});

it('sums the changes of unequal ranks, scales, signs and sites exactly, and survives its file', async () => {
  expect(
    await onTiny(async (model) => {
      await perturbed(model, 'a', { rank: 2, alpha: 6 }, ['q_proj', 'embed_tokens']);
      await perturbed(model, 'b', { rank: 4, alpha: 4, rslora: true }, ['q_proj', 'down_proj']);
      setAdapterScale(model, 'b', 0.5);
      const { set, sites } = await combineAdapters(model, { a: 0.7, b: -1.5 }, { name: 'sum' });
      expect(sites.map(({ rank, relativeError }) => [rank, relativeError])).toEqual([
        [2, 0],
        [6, 0],
        [4, 0],
        [6, 0],
        [4, 0],
      ]);
      const path = 'model.layers.1.self_attn.q_proj';
      const [a, b, sum] = [await deltaOf(model, 'a', path), await deltaOf(model, 'b', path), await deltaOf(model, 'sum', path)];
      expect(
        distance(
          sum,
          a.map((value, i) => 0.7 * value - 1.5 * b[i]!),
        ),
      ).toBeLessThan(1e-6);

      setAdapterScale(model, 'a', 0.7);
      setAdapterScale(model, 'b', -0.75);
      const both = await logitsOf(model, rows, withAdapters(['a', 'b']));
      expect(distance(await logitsOf(model, rows, withAdapters(['sum'])), both)).toBeLessThan(1e-5);
      const files = await filesOf(set);
      expect(configOf(files)).toMatchObject({ use_rslora: false, r: 6, lora_alpha: 6 });
      deleteAdapter(model, 'sum');
      await loadAdapter(model, files, { name: 'again' });
      activateAdapters(model, ['again']);
      expect(distance(await logitsOf(model, rows), both)).toBeLessThan(1e-5);
    }),
  ).toBe(0);
});

it('cut to a rank is the nearest matrix of that rank, and says what it lost', async () => {
  expect(
    await onTiny(async (model) => {
      await perturbed(model, 'a', { rank: 2 }, ['q_proj']);
      await perturbed(model, 'b', { rank: 3 }, ['q_proj']);
      const path = 'model.layers.0.self_attn.q_proj';
      await combineAdapters(model, { a: 1, b: 1 }, { name: 'all' });
      const whole = await deltaOf(model, 'all', path);
      const norm = Math.sqrt(whole.reduce((sum, value) => sum + value * value, 0));
      const errors: number[] = [];
      for (const rank of [5, 4, 3, 2, 1]) {
        const { sites } = await combineAdapters(model, { a: 1, b: 1 }, { name: `cut${rank}`, rank });
        const close = await deltaOf(model, `cut${rank}`, path);
        const measured = Math.sqrt(whole.reduce((sum, value, i) => sum + (value - close[i]!) ** 2, 0)) / norm;
        expect(Math.abs(measured - sites[0]!.relativeError)).toBeLessThan(1e-5);
        errors.push(measured);
      }
      expect(errors[0]).toBeLessThan(1e-6);
      expect(errors).toEqual([...errors].sort((x, y) => x - y));
      expect(errors.at(-1)).toBeLessThan(1);
      // Five columns of v_proj's 8 and then more than 8: past the smaller side the product itself is decomposed.
      await perturbed(model, 'v', { rank: 8 }, ['v_proj']);
      await perturbed(model, 'w', { rank: 8 }, ['v_proj']);
      const { sites } = await combineAdapters(model, { v: 1, w: 1 }, { name: 'tall', rank: 8 });
      expect(sites[0]!.relativeError).toBeLessThan(1e-6);
    }),
  ).toBe(0);
});

it('refuses by name what is no product, and leaves nothing behind', async () => {
  await onTiny(async (model) => {
    await perturbed(model, 'dora', { rank: 2, dora: true }, ['q_proj']);
    await perturbed(model, 'bias', { rank: 2, loraBias: true }, ['q_proj']);
    await perturbed(model, 'whole', { rank: 2, modulesToSave: ['lm_head'] }, ['q_proj']);
    await perturbed(model, 'rows', { rank: 2, trainableTokens: [1] }, ['q_proj']);
    const before = memory().numTensors;
    for (const name of ['dora', 'bias', 'whole', 'rows']) {
      const error = await rejection(combineAdapters(model, { [name]: 1 }, { name: 'sum' }));
      expect(error).toBeInstanceOf(ConfigError);
      expect(error.details['name']).toBe(name);
    }
    expect(await rejection(combineAdapters(model, {}, { name: 'sum' }))).toBeInstanceOf(NotFoundError);
    expect(await rejection(combineAdapters(model, { absent: 1 }, { name: 'sum' }))).toBeInstanceOf(NotFoundError);
    expect(await rejection(combineAdapters(model, { dora: Number.NaN }, { name: 'sum' }))).toBeInstanceOf(ConfigError);
    expect(memory().numTensors).toBe(before);
  });
});
