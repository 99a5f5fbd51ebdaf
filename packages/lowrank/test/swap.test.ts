import { describe, expect, it } from 'vitest';
import { memory, withAdapters, type NiwakiError } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { bytesOf, distance, logits, siteParameters, trainable } from '../../testing/src/contract-model.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { disposedAfterEach } from '../../testing/src/disposed-after-each.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { bottleneck, dora, ia3, lora } from '../src/index.ts';
import {
  adapt,
  type AdapterMethod,
  deleteAdapter,
  mergeAdapter,
  type PeftSet,
  RankError,
  setAdapterScale,
  unmergeAdapter,
} from '@niwaki/peft';
import { loadAdapter, swapAdapter } from './verbs.ts';
import { configOf, filesOf, rejection, type Files } from './support.ts';

const models = disposedAfterEach();

async function tiny(): Promise<Model> {
  const model = await tinyLlama();
  models.push(model);
  return model;
}

interface Made {
  readonly model: Model;
  readonly set: PeftSet;
}
/** An adapter with values that show, on a model of its own. */
async function made(method: AdapterMethod, { at = ['q_proj', 'down_proj'] as string | string[], seed = 1 } = {}): Promise<Made> {
  const model = await tiny();
  const set = await adapt(model, method, { at, seed });
  perturb(set, seed);
  return { model, set };
}

/** What the same adapter alone gives, and its file. */
async function alone(
  method: AdapterMethod,
  options?: Parameters<typeof made>[1],
): Promise<{ outputs: Float32Array; files: Files; set: PeftSet }> {
  const { model, set } = await made(method, options);
  return { outputs: await logits(model), files: await filesOf(set), set };
}

const tolerance = 1e-5;
const patterns = {
  rankPattern: { down_proj: 3, '^model.layers.1.self_attn.q_proj': 1 },
  alphaPattern: { '0.self_attn.q_proj': 5, down_proj: 1 },
};

describe('swapping the values of an adapter', () => {
  it.each<[string, AdapterMethod, AdapterMethod]>([
    ['of the same rank', lora({ rank: 2, alpha: 6 }), lora({ rank: 2, alpha: 3 })],
    ['of a lower rank', lora({ rank: 4, alpha: 8 }), lora({ rank: 1, alpha: 3 })],
    ['with ranks and alphas by pattern', lora({ rank: 4 }), lora({ rank: 2, alpha: 7, ...patterns })],
    [
      'into ranks and alphas by pattern',
      lora({ rank: 4, rankPattern: { q_proj: 3 }, alphaPattern: { down_proj: 16 } }),
      lora({ rank: 2, alpha: 7 }),
    ],
    ['of rsLoRA', lora({ rank: 4, alpha: 8 }), lora({ rank: 2, alpha: 3, rslora: true })],
    ['into rsLoRA', lora({ rank: 4, alpha: 8, rslora: true }), lora({ rank: 2, alpha: 3 })],
    ['of DoRA', dora({ rank: 4, alpha: 6 }), dora({ rank: 2, alpha: 3 })],
    ['with a bias', lora({ rank: 2, loraBias: true }), lora({ rank: 1, loraBias: true, alpha: 3 })],
    ['with whole modules', lora({ rank: 2, modulesToSave: ['norm'] }), lora({ rank: 1, modulesToSave: ['norm'] })],
    ['of scaled activations', ia3(), ia3({ init: false })],
  ])('gives what the other one gives, in the same parameters, from a set and from a file: %s', async (_, own, other) => {
    const { outputs, files, set: source } = await alone(other, { seed: 2 });
    for (const from of [source, files]) {
      const { model, set } = await made(own);
      await logits(model);
      const parameters = [...model.parameters().values()];
      const tensors = memory().numTensors;
      await swapAdapter(model, 'default', from);
      expect(memory().numTensors).toBe(tensors);
      expect(model.active).toEqual(['default']);
      expect([...model.parameters().values()].every((parameter, i) => parameter === parameters[i])).toBe(true);
      expect(trainable(model).length).toBeGreaterThan(0);
      expect(distance(await logits(model), outputs)).toBeLessThan(tolerance);
      // It is saved as what it computes now.
      const fresh = await tiny();
      await loadAdapter(fresh, await filesOf(set));
      expect(distance(await logits(fresh), outputs)).toBeLessThan(tolerance);
    }
  });

  it('covers adapters of modules too', async () => {
    const at = '**.mlp';
    const { outputs, files } = await alone(bottleneck({ reduction: 4 }), { at, seed: 2 });
    const { model } = await made(bottleneck({ reduction: 4 }), { at });
    await swapAdapter(model, 'default', files);
    expect(await logits(model)).toEqual(outputs);
  });

  it('turns sites off that the other one has not, and on again', async () => {
    const few = await alone(lora({ rank: 2, alpha: 3 }), { at: 'q_proj', seed: 2 });
    const all = await alone(lora({ rank: 2, alpha: 3 }), { at: 'all-linear', seed: 3 });
    const { model } = await made(lora({ rank: 2 }), { at: 'all-linear' });
    await swapAdapter(model, 'default', few.set);
    expect(distance(await logits(model), few.outputs)).toBeLessThan(tolerance);
    await swapAdapter(model, 'default', all.files);
    expect(distance(await logits(model), all.outputs)).toBeLessThan(tolerance);
  });

  it('states the new scale in its file, and keeps its own strength', async () => {
    const other = await alone(lora({ rank: 2, alpha: 7, ...patterns }), { seed: 2 });
    const { model, set } = await made(lora({ rank: 4 }));
    setAdapterScale(model, 'default', 0.5);
    await swapAdapter(model, 'default', other.set);
    const config = configOf(await filesOf(set));
    expect([config['r'], config['rank_pattern'], config['lora_alpha']]).toEqual([4, {}, 10]);
    // 4 times the scale of each: 5 / 2, 1 / 3, 7 / 1.
    expect(config['alpha_pattern']).toEqual({
      '^model\\.layers\\.0\\.mlp\\.down_proj': 4 / 3,
      '^model\\.layers\\.1\\.self_attn\\.q_proj': 28,
      '^model\\.layers\\.1\\.mlp\\.down_proj': 4 / 3,
    });
    const halved = await logits(model);
    setAdapterScale(model, 'default', 1);
    expect(distance(await logits(model), other.outputs)).toBeLessThan(tolerance);
    expect(distance(halved, other.outputs)).toBeGreaterThan(1e-3);
  });

  it('merges and comes off with the values of now, and leaves the base', async () => {
    const other = await alone(lora({ rank: 1, alpha: 7 }), { seed: 2 });
    const { model } = await made(lora({ rank: 4 }));
    const base = await bytesOf(siteParameters(model));
    await swapAdapter(model, 'default', other.files);
    await mergeAdapter(model);
    expect(distance(await logits(model), other.outputs)).toBeLessThan(tolerance);
    expect((await rejection(swapAdapter(model, 'default', other.files))).message).toMatch(/merged into the weights/);
    await unmergeAdapter(model);
    expect(await bytesOf(siteParameters(model))).toEqual(base);
  });

  it('leaves other adapters on the model alone', async () => {
    const other = await alone(lora({ rank: 1 }), { seed: 2 });
    const { model } = await made(lora({ rank: 2 }));
    const second = await adapt(model, lora({ rank: 2 }), { at: 'q_proj', name: 'swapped-in' });
    perturb(second, 5);
    const before = await logits(model, withAdapters(['swapped-in']));
    await swapAdapter(model, 'default', other.files);
    expect([...model.adapters.keys()]).toEqual(['default', 'swapped-in']);
    expect(await logits(model, withAdapters(['swapped-in']))).toEqual(before);
    expect(distance(await logits(model, withAdapters(['default'])), other.outputs)).toBeLessThan(tolerance);
  });
});

describe('a swap that does not fit', () => {
  it.each<[string, AdapterMethod, Parameters<typeof made>[1], typeof RankError | undefined, RegExp]>([
    ['a higher rank', lora({ rank: 3 }), {}, RankError, /has rank 2, the other adapter needs 3/],
    [
      'a higher rank somewhere',
      lora({ rank: 1, rankPattern: { '1.mlp.down_proj': 4 } }),
      {},
      RankError,
      /layers\.1\.mlp\.down_proj.*needs 4/,
    ],
    [
      'more sites',
      lora({ rank: 1 }),
      { at: 'all-linear' },
      undefined,
      /no place for what the other one does at model\.layers\.0\.self_attn\.k_proj/,
    ],
    ['another kind', dora({ rank: 2 }), {}, undefined, /kind lora, the other one is dora/],
    ['another method', ia3(), {}, undefined, /kind lora, the other one is ia3/],
    ['a bias more', lora({ rank: 2, loraBias: true }), {}, undefined, /only one of the adapters.*lora_B\.bias/],
    ['whole modules', lora({ rank: 2, modulesToSave: ['norm'] }), {}, undefined, /replaces .*norm.* whole, and the other does not/],
    ['a rewritten base', lora({ rank: 2, init: 'pissa' }), {}, undefined, /a base that was rewritten/],
  ])('is refused, and nothing has changed: %s', async (_, other, options, Class, message) => {
    const { set: source } = await made(other, { ...options, seed: 2 });
    const { model, set } = await made(lora({ rank: 2, alpha: 6 }));
    const [before, method] = [await bytesOf(model.parameters().values()), set.method];
    const error = await rejection(swapAdapter(model, 'default', source));
    expect(error.message).toMatch(message);
    expect(Class === undefined || Class.isInstance(error as NiwakiError)).toBe(true);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    expect(set.method).toBe(method);
  });

  it('of fewer sites needs values that can be turned off', async () => {
    const { set: source } = await made(dora({ rank: 2 }), { at: 'q_proj', seed: 2 });
    const { model } = await made(dora({ rank: 2 }));
    expect((await rejection(swapAdapter(model, 'default', source))).message).toMatch(/dora there cannot be turned off/);
  });

  it('of token rows needs the same tokens', async () => {
    const tokens = (ids: number[]): AdapterMethod => lora({ rank: 2, trainableTokens: ids });
    const same = await alone(tokens([3, 7]), { seed: 2 });
    const { set: others } = await made(tokens([3, 8]), { seed: 2 });
    const { model } = await made(tokens([3, 7]));
    await swapAdapter(model, 'default', same.files);
    expect(distance(await logits(model), same.outputs)).toBeLessThan(tolerance);
    expect((await rejection(swapAdapter(model, 'default', others))).message).toMatch(/train different rows/);
  });

  it('by a name or a file that is not there changes nothing', async () => {
    const { model, set } = await made(lora({ rank: 2 }));
    const before = await bytesOf(model.parameters().values());
    expect((await rejection(swapAdapter(model, 'absent', set))).message).toMatch(/no adapter 'absent'/);
    expect((await rejection(swapAdapter(model, 'default', new Map()))).message).toMatch(/adapter_config\.json/);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    expect([...model.adapters.keys()]).toEqual(['default']);
    deleteAdapter(model, 'default');
  });
});
