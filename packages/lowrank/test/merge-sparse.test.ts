import { describe, expect, it } from 'vitest';
import { ConfigError, denseParameter, tensor2d } from '@niwaki/tensor';
import { denseWeight, masked, nOfM, packMask, packNOfM, type Weight } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import { lora } from '../src/index.ts';
import { adapt, mergeAdapter, unmergeAdapter } from '@niwaki/peft';
import { distance, logitsOf } from './golden.ts';
import { onTiny, perturb, rejection, rows } from './support.ts';

const path = 'model.layers.0.self_attn.q_proj';
/** The first two of every four. */
const kept = Uint8Array.from({ length: 256 }, (_, e) => (e % 4 < 2 ? 1 : 0));

async function values(weight: Weight): Promise<number[]> {
  const dense = weight.dense();
  const host = Array.from(await dense.data(), (v) => v + 0);
  dense.dispose();
  return host;
}

const stores: [string, (host: number[]) => Weight][] = [
  [
    'masked',
    (host) => masked(path, denseWeight(denseParameter(`${path}.weight`, tensor2d(host, [16, 16]), { role: 'matrix' })), packMask(kept)),
  ],
  [
    'n-of-m',
    (host) => {
      const packed = packNOfM(path, host, [16, 16], { n: 2, m: 4, kept });
      const inner = denseWeight(denseParameter(`${path}.values.weight`, tensor2d(packed.values, [16, 8]), { role: 'values' }));
      return nOfM(path, [16, 16], { values: inner, index: packed.index }, { n: 2, m: 4 });
    },
  ],
];

describe.each(stores)('merging an adapter into a pruned base (%s)', (kind, make) => {
  const pruned = async (model: Model): Promise<number[]> => {
    const host = await values(model.sites(path)[0]!.weight!);
    model.replace(path, make(host));
    const set = await adapt(model, lora({ rank: 2, alpha: 6 }), { at: 'q_proj' });
    perturb(set, { size: 0.2, seed: 3 });
    return values(model.sites(path)[0]!.weight!);
  };

  it('asks whether its zeros shall stay', async () => {
    const left = await onTiny(async (model) => {
      await pruned(model);
      const error = await rejection(mergeAdapter(model));
      expect(error).toBeInstanceOf(ConfigError);
      expect(String(error)).toMatch(/does not go with entries that must stay 0, which '.*q_proj'/);
    });
    expect(left).toBe(0);
  });

  it('keeps them all, in the same format, and says what is lost', async () => {
    const left = await onTiny(async (model) => {
      const before = await pruned(model);
      const report = await mergeAdapter(model, undefined, { into: 'requantize' });
      const site = report.sites.find((found) => found.path === path)!;
      expect(site.kind).toBe(kind);
      expect(site.zerosLost).toBe(0);
      // About half of what the adapter adds falls on zeros.
      expect(site.changeError).toBeGreaterThan(0.4);
      expect(site.changeError).toBeLessThan(0.9);
      const after = await values(model.sites(path)[0]!.weight!);
      expect(after.every((value, e) => kept[e] === 1 || value === 0)).toBe(true);
      expect(after).not.toEqual(before);
      await unmergeAdapter(model);
      expect(await values(model.sites(path)[0]!.weight!)).toEqual(before);
    });
    expect(left).toBe(0);
  });

  it('fills them where it is told to, counts them, and computes what the adapter did', async () => {
    const left = await onTiny(async (model) => {
      const before = await pruned(model);
      const adapted = await logitsOf(model, rows);
      const report = await mergeAdapter(model, undefined, { into: 'dense' });
      const site = report.sites.find((found) => found.path === path)!;
      expect(site.kind).toBe('dense');
      const after = await values(model.sites(path)[0]!.weight!);
      expect(site.zerosLost).toBe(before.filter((value, e) => value === 0 && after[e] !== 0).length);
      expect(site.zerosLost).toBe(128);
      expect(site.changeError).toBe(0);
      expect(distance(await logitsOf(model, rows), adapted)).toBeLessThan(1e-5);
      await unmergeAdapter(model);
    });
    expect(left).toBe(0);
  });
});
