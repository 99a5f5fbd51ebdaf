import { describe, expect, it } from 'vitest';
import {
  add,
  ConfigError,
  createDraw,
  denseParameter,
  memory,
  noise,
  NotFoundError,
  tensor1d,
  tidy,
  withAdapters,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, onScaledChannels, tensorQuantizer, tokenQuantizer } from '@niwaki/weights';
import { createModel, forward, generate, permuteUnits, tokenBatch, type Adapter, type HfConfig, type Model } from '../src/index.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const vocabularySize = 32;
const ids = [3, 1, 4, 1, 5, 9, 2, 6];
const coarse = tokenQuantizer({ bits: 3, symmetric: true });
const inputs = ['linear', 'head', 'operand'] as const;

async function onTiny(test: (model: Model) => Promise<void>, config: Record<string, unknown> = {}): Promise<void> {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  await test(model);
  model.dispose();
  expect(memory().numTensors).toBe(before);
}

async function logitsOf(model: Model, view = {}): Promise<Float32Array> {
  const batch = tokenBatch([ids], { vocabularySize });
  const logits = forward(model, batch, view);
  const values = (await logits.data()) as Float32Array;
  for (const tensor of [logits, ...Object.values(batch)]) if (tensor !== undefined && 'dispose' in tensor) tensor.dispose();
  return values.slice();
}

const gap = (a: Float32Array, b: Float32Array): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));

/** y + x·Aᵀ at a site. */
function adding(path: string, shape: readonly [number, number]): Adapter {
  const values = noise([...shape], createDraw(2, 0).at(path), 'gaussian') as Tensor2D;
  const weight = denseWeight(denseParameter(`${path}.added`, values, { role: 'matrix' }));
  return {
    kind: 'adding',
    point: 'linear',
    parameters: weight.parts,
    apply: (x, next, call) => add(next(x), weight.apply(x as Tensor2D, call)),
    delta: () => weight,
  };
}

describe('the input of a site', () => {
  it('is rounded at linear maps, at the head, and at each operand of attention', () =>
    onTiny(async (model) => {
      const plain = await logitsOf(model);
      const places = model.sites('**', { points: inputs });
      expect(places.map(({ path }) => path).filter((path) => path.startsWith('model.layers.0.self_attn'))).toEqual([
        'model.layers.0.self_attn.queries',
        'model.layers.0.self_attn.keys',
        'model.layers.0.self_attn.values',
        'model.layers.0.self_attn.q_proj',
        'model.layers.0.self_attn.k_proj',
        'model.layers.0.self_attn.v_proj',
        'model.layers.0.self_attn.o_proj',
      ]);
      const moved: number[] = [];
      for (const { path } of places) {
        model.replaceInput(path, coarse);
        moved.push(gap(await logitsOf(model), plain));
        model.replaceInput(path, undefined);
        expect(await logitsOf(model)).toEqual(plain);
      }
      expect(Math.min(...moved)).toBeGreaterThan(1e-4);
    }));

  it('reaches the matrix rounded: what an operand or a map gives is that of the rounded rows', () =>
    onTiny(async (model) => {
      const [site] = model.sites('model.layers.0.mlp.down_proj');
      let seen: number[] = [];
      const watched = site!.weight!;
      site!.weight = {
        ...watched,
        apply: (x, call) => {
          seen = [...x.dataSync()];
          return watched.apply(x, call);
        },
      };
      model.replaceInput(site!.path, coarse);
      await logitsOf(model);
      site!.weight = watched;
      // 7 values a row, 0 and a multiple of the step either side.
      const width = watched.shape[1];
      const row = seen.slice(0, width).map((value) => (3 * value) / Math.max(...seen.slice(0, width).map(Math.abs)));
      for (const value of row) expect(value).toBeCloseTo(Math.round(value), 4);
      expect(new Set(row.map(Math.round)).size).toBeGreaterThan(2);
    }));

  it('is rounded for adapters too, active or not, so that one that adds can be merged exactly', () =>
    onTiny(async (model) => {
      const path = 'model.layers.0.mlp.down_proj';
      const [site] = model.sites(path);
      model.replaceInput(path, coarse);
      const rounded = await logitsOf(model);
      const adapter = adding(path, site!.weight!.shape);
      model.attach({ name: 'a', method: { kind: 'test', options: {} }, sites: new Map([[path, adapter]]), replaced: new Map(), base: '' });
      const beside = await logitsOf(model);
      expect(gap(beside, rounded)).toBeGreaterThan(1e-3);
      expect(await logitsOf(model, { view: withAdapters('none') })).toEqual(rounded);
      const index = tensor1d([0], 'int32') as Tensor1D;
      expect(gap(await logitsOf(model, { view: withAdapters(index) }), beside)).toBeLessThan(1e-5);
      index.dispose();
      const merged = tidy(() => add(site!.weight!.dense(), adapter.delta!().dense())) as Tensor2D;
      model.detach('a');
      model.replace(path, denseWeight(denseParameter(`${path}.weight`, merged, { role: 'matrix' })));
      for (const part of Object.values(adapter.parameters)) part.dispose();
      expect(gap(await logitsOf(model), beside)).toBeLessThan(1e-4);
    }));

  it('is cached as it was rounded: generation says what a whole forward says', () =>
    onTiny(async (model) => {
      for (const { path } of model.sites('**', { points: inputs })) model.replaceInput(path, coarse);
      const first: number[] = [];
      for await (const { id } of generate(model, ids, { maxNewTokens: 4, stopIds: [] })) first.push(id);
      const all = [...ids, ...first];
      const batch = tokenBatch([all], { vocabularySize });
      const logits = forward(model, batch);
      const values = ((await logits.array()) as number[][][])[0]!;
      for (const tensor of [logits, ...Object.values(batch)]) if (tensor !== undefined && 'dispose' in tensor) tensor.dispose();
      expect(values.slice(ids.length - 1, -1).map((row) => row.indexOf(Math.max(...row)))).toEqual(first);
    }));

  it('goes on over units in another order, unless it knows its channels apart', () =>
    onTiny(async (model) => {
      const path = 'model.layers.0.mlp.down_proj';
      const coupling = model.couplings.find(({ kind }) => kind === 'channels')!;
      const backwards = Array.from({ length: coupling.units }, (_, i) => coupling.units - 1 - i);
      model.replaceInput(path, coarse);
      const before = await logitsOf(model);
      await permuteUnits(model, coupling, backwards);
      expect(gap(await logitsOf(model), before)).toBeLessThan(1e-5);
      model.replaceInput(path, onScaledChannels(path, coarse, new Float32Array(32).fill(0.5)));
      await expect(permuteUnits(model, coupling, backwards)).rejects.toThrow(/down_proj' rounds its input by factors of channels/);
    }));

  it('is its site’s: parameters and the disposal of what is replaced go with it', () =>
    onTiny(async (model) => {
      const path = 'model.layers.1.self_attn.q_proj';
      const before = memory().numTensors;
      const quantizer = tensorQuantizer(path, { scale: 0.1 }, { bits: 8, symmetric: true });
      model.replaceInput(path, quantizer);
      expect(model.parameters().get(`${path}.input_scale`)).toBe(quantizer.step);
      expect(model.stages()[2]!.parameters()).toContain(quantizer.step);
      const kept = tensorQuantizer(path, { scale: 0.2 }, { bits: 8, symmetric: true });
      model.replaceInput(path, kept);
      expect(() => quantizer.step.read()).toThrow(/disposed/);
      model.replaceInput(path, undefined, { keep: true });
      expect(kept.step.read().shape).toEqual([1]);
      kept.step.dispose();
      expect(memory().numTensors).toBe(before);
      expect(() => model.replaceInput('model.embed_tokens', coarse)).toThrow(/'model.embed_tokens' \(embedding\) multiplies no rows/);
      expect(() => model.replaceInput('model.layers.0.self_attn', coarse)).toThrow(ConfigError);
      expect(() => model.replaceInput('model.layers.0.self_attn.key', coarse)).toThrow(NotFoundError);
    }));
});

describe('a config', () => {
  /** The model again, from its config and what its parameters hold. */
  async function again(model: Model, config: HfConfig): Promise<Model> {
    const held = model.parameters();
    const copy = (path: string): Tensor => held.get(path)!.read().clone();
    return createModel({
      config,
      source: 'again',
      weight: async (path, _, role) => (held.has(path) ? denseWeight(denseParameter(path, copy(path), { role })) : undefined),
      vector: async (path, _, role) => (held.has(path) ? denseParameter(path, copy(path), { role }) : undefined),
    });
  }

  it('says what is rounded now, and a model made from it rounds the same', () =>
    onTiny(async (model) => {
      expect(model.info.config['niwaki']).toBeUndefined();
      const [q, down] = ['model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.down_proj'];
      const grid = { bits: 4, symmetric: false };
      model.replaceInput(q, tensorQuantizer(q, { scale: 0.3, zero: 7 }, grid));
      const up = 'model.layers.0.mlp.up_proj';
      model.replaceInput(up, tokenQuantizer({ bits: 2, symmetric: true, outlierThreshold: 0.5 }));
      const factors = Float32Array.from({ length: 32 }, (_, i) => 1 / (1 + (i % 3)));
      model.replaceInput(down, onScaledChannels(down, tensorQuantizer(down, { scale: 0.01 }, { bits: 8, symmetric: true }), factors));
      for (const { path } of model.sites('**', { points: ['operand'] })) model.replaceInput(path, coarse);
      const config = JSON.parse(JSON.stringify(model.info.config)) as HfConfig;
      expect(config['niwaki']).toEqual({
        activations: [
          {
            sites: [0, 1].flatMap((layer) => ['queries', 'keys', 'values'].map((name) => `model.layers.${layer}.self_attn.${name}`)),
            bits: 3,
            symmetric: true,
            per: 'token',
          },
          { sites: [q], bits: 4, symmetric: false, per: 'tensor' },
          { sites: [up], bits: 2, symmetric: true, per: 'token', outlierThreshold: 0.5 },
          { sites: [down], bits: 8, symmetric: true, per: 'tensor', factors: true },
        ],
      });
      const other = await again(model, config);
      expect(await logitsOf(other)).toEqual(await logitsOf(model));
      expect(other.info.config).toEqual(config);
      for (const { path } of other.sites('**', { points: inputs })) other.replaceInput(path, undefined);
      expect(other.info.config['niwaki']).toBeUndefined();
      other.dispose();
    }));

  it.each([
    ['no list', 'all', /niwaki.activations of the config is no list/],
    ['no sites', [{ bits: 8, symmetric: true, per: 'token' }], /niwaki.activations\[0\] of the config: sites must be/],
    ['another way', [{ sites: [], bits: 8, symmetric: true, per: 'row' }], /per must be 'token' or 'tensor', got "row"/],
    ['too many bits', [{ sites: [], bits: 16, symmetric: true, per: 'token' }], /niwaki.activations\[0\]: bits must be .* got 16/],
    [
      'no threshold',
      [{ sites: [], bits: 8, symmetric: true, per: 'token', outlierThreshold: '6' }],
      /outlierThreshold must be a finite number above 0, got '6'/,
    ],
    [
      'outliers of one step',
      [{ sites: [], bits: 8, symmetric: true, per: 'tensor', outlierThreshold: 6 }],
      /outlierThreshold goes with per: 'token'/,
    ],
    [
      'no step',
      [{ sites: ['model.layers.0.mlp.up_proj'], bits: 8, symmetric: true, per: 'tensor' }],
      /up_proj.input_scale', and there is no/,
    ],
    ['no such site', [{ sites: ['model.layers.9.mlp.up_proj'], bits: 8, symmetric: true, per: 'token' }], /model.layers.9.mlp.up_proj/],
  ])('is refused with %s', (_, activations, message) =>
    onTiny(async (model) => {
      const before = memory().numTensors;
      const config = { ...model.info.config, niwaki: { activations } };
      await expect(again(model, config)).rejects.toThrow(message);
      expect(memory().numTensors).toBe(before);
    }),
  );
});
