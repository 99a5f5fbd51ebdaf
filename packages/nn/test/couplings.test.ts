import { describe, expect, it } from 'vitest';
import { add, div, memory, mul, noise, createDraw, reshape, tensor1d, tidy, type Parameter, type Tensor } from '@niwaki/tensor';
import { permuteUnits, type Coupling, type Model, type Site } from '@niwaki/nn';
import { distance, logits } from '../../testing/src/contract-model.ts';
import { disposedAfterEach } from '../../testing/src/disposed-after-each.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const models = disposedAfterEach();

/** Two families and biases everywhere, which start at values that show. */
const variants: [string, Record<string, unknown>][] = [
  ['llama with biases, 4 heads on 2', { attention_bias: true, mlp_bias: true }],
  ['llama, 8 heads on 2', { num_attention_heads: 8, num_key_value_heads: 2 }],
  ['llama, 4 heads on 4', { num_key_value_heads: 4, attention_bias: true }],
  ['qwen3, with norms of heads', { model_type: 'qwen3' }],
];

async function ground(config: Record<string, unknown> = {}): Promise<Model> {
  const model = await tinyLlama(config);
  models.push(model);
  for (const parameter of model.parameters().values())
    if (parameter.role === 'bias' || parameter.role === 'norm')
      parameter.write(
        tidy(() => add(parameter.read(), mul(noise(parameter.shape, createDraw(2, 0).at(parameter.path), 'gaussian'), 0.3))) as Tensor,
      );
  return model;
}

const siteAt = (model: Model, path: string): Site => model.sites(path)[0]!;
const of = (model: Model, kind: Coupling['kind']): readonly Coupling[] => model.couplings.filter((coupling) => coupling.kind === kind);

/** Factors that differ from unit to unit, for `count` entries. */
const factors = (count: number): Float32Array => Float32Array.from({ length: count }, (_, i) => 0.5 + (i % 7) / 4);

function rewrite(parameter: Parameter, change: (value: Tensor) => Tensor): void {
  parameter.write(tidy(() => change(parameter.read())));
}

/** A factor for each entry that the source gives: the source is divided, its readers are multiplied. */
function fold(model: Model, { kind, units, size, source, readers }: Coupling): void {
  const count = (units / source.serves) * size;
  const s = factors(count);
  const seen = Float32Array.from({ length: units * size }, (_, i) => s[Math.floor(i / size / source.serves) * size + (i % size)]!);
  if (kind === 'norm') rewrite(model.parameters().get(`${source.path}.weight`)!, (value) => div(value, tensor1d(s)));
  else {
    const { weight, bias } = siteAt(model, source.path);
    rewrite(weight!.matrix!, (value) => div(value, reshape(tensor1d(s), [count, 1])));
    if (bias !== undefined) rewrite(bias, (value) => div(value, tensor1d(s)));
  }
  for (const path of readers) rewrite(siteAt(model, path).weight!.matrix!, (value) => mul(value, tensor1d(seen)));
}

describe.each(variants)('couplings of a %s', (_, config) => {
  it('take a factor on one side that the other side gives back', async () => {
    const model = await ground(config);
    const before = await logits(model);
    expect(model.couplings.map(({ kind }) => kind)).toEqual([...Array(2)].flatMap(() => ['norm', 'heads', 'norm', 'channels']));
    for (const coupling of model.couplings) {
      fold(model, coupling);
      expect(distance(await logits(model), before)).toBeLessThan(2e-5);
    }
  });

  it('name what is coupled and nothing else: a factor on one side alone shows', async () => {
    for (const kind of ['norm', 'heads', 'channels'] as const) {
      const model = await ground(config);
      const before = await logits(model);
      fold(model, { ...of(model, kind)[0]!, readers: [] });
      expect(distance(await logits(model), before)).toBeGreaterThan(1e-3);
    }
  });

  it('take another order of units on both sides', async () => {
    const model = await ground(config);
    const before = await logits(model);
    const tensors = memory().numTensors;
    for (const coupling of [...of(model, 'heads'), ...of(model, 'channels')]) {
      const { units, source } = coupling;
      // Groups from behind, and inside each the units from behind.
      const order = Array.from({ length: units }, (__, i) => units - 1 - i);
      await permuteUnits(model, coupling, order);
      expect(coupling.order).toEqual(order);
      expect(distance(await logits(model), before)).toBeLessThan(1e-5);
      if (source.serves > 1) continue;
      await permuteUnits(model, coupling, [1, 0, ...order.slice(0, -2).reverse()]);
      expect(coupling.order!.slice(0, 3)).toEqual([units - 2, units - 1, units - 3]);
      expect(distance(await logits(model), before)).toBeLessThan(1e-5);
    }
    expect(memory().numTensors).toBe(tensors);
  });

  it('give the model back bit for bit when the order is turned round again', async () => {
    const model = await ground(config);
    const before = await logits(model);
    const [coupling] = of(model, 'heads') as [Coupling];
    const order = Array.from({ length: coupling.units }, (__, i) => coupling.units - 1 - i);
    await permuteUnits(model, coupling, order);
    await permuteUnits(model, coupling, order);
    expect(coupling.order).toEqual([...order].reverse());
    expect(await logits(model)).toEqual(before);
  });
});

describe('permuteUnits', () => {
  it('keeps parameters, their names and what trains', async () => {
    const model = await ground({ attention_bias: true });
    siteAt(model, 'model.layers.0.self_attn.q_proj').weight!.matrix!.trainable = false;
    const [names, frozen] = [[...model.parameters().keys()], [...model.parameters().values()].map(({ trainable }) => trainable)];
    await permuteUnits(model, of(model, 'heads')[0]!, [2, 3, 0, 1]);
    expect([...model.parameters().keys()]).toEqual(names);
    expect([...model.parameters().values()].map(({ trainable }) => trainable)).toEqual(frozen);
  });

  it('moves no query head out of its group, and nothing of the residual stream', async () => {
    const model = await ground({ num_attention_heads: 8, num_key_value_heads: 2 });
    const before = await logits(model);
    const [coupling] = of(model, 'heads') as [Coupling];
    await permuteUnits(model, coupling, [6, 4, 5, 7, 1, 0, 2, 3]);
    expect(distance(await logits(model), before)).toBeLessThan(1e-5);
    await expect(permuteUnits(model, coupling, [4, 1, 2, 3, 0, 5, 6, 7])).rejects.toThrow(/would leave the group of 4/);
    await expect(permuteUnits(model, coupling, [0, 0, 2, 3, 4, 5, 6, 7])).rejects.toThrow(/each of 0 to 7 once/);
    const [norm] = of(model, 'norm') as [Coupling];
    await expect(permuteUnits(model, norm, [...Array(norm.units).keys()])).rejects.toThrow(/residual stream/);
    expect(distance(await logits(model), before)).toBeLessThan(1e-5);
  });

  it('refuses codes, which would be rounded again', async () => {
    const model = await ground();
    const site = siteAt(model, 'model.layers.0.mlp.down_proj');
    const { exact: _, ...codes } = site.weight!;
    model.replace(site.path, { ...codes, kind: 'nf4' }, { keep: true });
    await expect(permuteUnits(model, of(model, 'channels')[0]!, [...Array(32).keys()].reverse())).rejects.toThrow(/holds nf4 codes/);
  });
});
