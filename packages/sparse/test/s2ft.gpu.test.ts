import { expect, it, describe } from 'vitest';
import { memory } from '@niwaki/tensor';
import { distance, logits, onTiny, train } from '../../testing/src/contract-model.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { siteGradientError } from '../../testing/src/site-gradient.ts';
import { adapt, mergeAdapter, unmergeAdapter } from '@niwaki/peft';
import { s2ft } from '../src/index.ts';

const missing = await gpuMissing();

/** f32 sums of a few hundred products in the order of the device. */
const tolerance = 1e-4;

describe.skipIf(missing)('S²FT on WebGPU', () => {
  it.each([
    ['gathered', {}],
    ['permuted', { permute: true }],
    ['gathered, in place', { inPlace: true }],
    ['permuted, in place', { permute: true, inPlace: true }],
  ])('starts at the base, has its gradients, learns and merges to the same: %s', (_, form) =>
    onTiny(async (model) => {
      const base = await logits(model);
      const options = { outputRatio: 0.5, downRatio: 0.25, valueRatio: 0.5, upRatio: 0.2, ...form };
      const set = await adapt(model, s2ft(options), { at: ['o_proj', 'down_proj', 'v_proj', 'up_proj'], seed: 2 });
      expect(distance(await logits(model), base)).toBeLessThan(tolerance);
      perturb(set, 1);
      for (const site of model.sites(({ path }) => set.sites.has(path)))
        expect(await siteGradientError(site, set.sites.get(site.path)!)).toBeLessThan(2e-3);
      const tensors = memory().numTensors;
      const { losses } = await train(model, { steps: 6, rate: 0.02 });
      expect(losses.at(-1)).toBeLessThan(losses[0]! - 0.05);
      expect(memory().numTensors).toBe(tensors);
      const active = await logits(model);
      expect(distance(active, base)).toBeGreaterThan(0.01);
      await mergeAdapter(model);
      expect(distance(await logits(model), active)).toBeLessThan(tolerance);
      await unmergeAdapter(model);
    }),
  );
});
