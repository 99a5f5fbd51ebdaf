import { expect, it } from 'vitest';
import {
  add,
  ConfigError,
  denseParameter,
  memory,
  NotFoundError,
  ShapeError,
  StateError,
  tensor1d,
  withAdapters,
  zeros,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, type Weight } from '@niwaki/weights';
import type { Adapter, AdapterSet, Model } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { additive, disposeSet, setOf } from './adapter-set.ts';
import { largestDifference, logitsOfRows } from './numbers.ts';

const rows = [
  [1, 2, 3, 4],
  [5, 6, 7, 8],
];

/** Runs a test on a model of its own and counts what is left of it; `kept` tensors stay with the test on purpose. */
async function onTiny(test: (model: Model) => void | number | Promise<void | number>): Promise<void> {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const kept = await test(model);
  model.dispose();
  expect(memory().numTensors).toBe(before + (kept ?? 0));
}

it('selects sites by path, pattern, predicate and the alias for all linear maps, which leaves the head out', () =>
  onTiny((model) => {
    expect(model.sites('all-linear')).toHaveLength(14);
    expect(model.sites(['q_proj', 'layers.1.mlp.*']).map((site) => site.path)).toEqual([
      'model.layers.0.self_attn.q_proj',
      'model.layers.1.self_attn.q_proj',
      'model.layers.1.mlp.gate_proj',
      'model.layers.1.mlp.up_proj',
      'model.layers.1.mlp.down_proj',
    ]);
    expect(model.sites((site) => site.point === 'head').map((site) => site.path)).toEqual(['lm_head']);
    expect(() => model.sites('q_porj')).toThrow(NotFoundError);
    expect(() => model.sites('q_porj')).toThrow(/q_proj/);
    expect(() => model.sites(() => false)).toThrow(NotFoundError);
  }));

it('gives sites that read the same tensor one input id', () =>
  onTiny((model) => {
    const ids = new Map(model.sites('layers.0.**').map((site) => [site.path.split('.').at(-1), site.inputId]));
    expect(new Set(['q_proj', 'k_proj', 'v_proj'].map((name) => ids.get(name))).size).toBe(1);
    expect(ids.get('gate_proj')).toBe(ids.get('up_proj'));
    expect(new Set(ids.values()).size).toBe(4);
  }));

it('applies the active sets, follows a view over its own list, and gives the base back bit for bit', () =>
  onTiny(async (model) => {
    const base = await logitsOfRows(model, rows);
    model.attach(setOf('one', model.sites(['q_proj', 'embed_tokens', 'lm_head'])));
    expect(model.active).toEqual(['one']);
    const one = await logitsOfRows(model, rows);
    expect(largestDifference(one, base)).toBeGreaterThan(0.01);
    model.attach(setOf('two', model.sites('down_proj')));
    expect(model.active).toEqual(['one']);
    expect(await logitsOfRows(model, rows)).toEqual(one);
    model.active = ['one', 'two'];
    const both = await logitsOfRows(model, rows);
    expect(largestDifference(both, one)).toBeGreaterThan(0.01);
    expect(await logitsOfRows(model, rows, { view: withAdapters('none') })).toEqual(base);
    expect(await logitsOfRows(model, rows, { view: withAdapters(['one']) })).toEqual(one);
    model.active = [];
    expect(await logitsOfRows(model, rows)).toEqual(base);
    expect(await logitsOfRows(model, rows, { view: withAdapters(['one', 'two']) })).toEqual(both);
    const detached = model.detach('one');
    expect([...model.adapters.keys()]).toEqual(['two']);
    disposeSet(detached);
  }));

it('wraps the first active adapter nearest to the base', () =>
  onTiny(async (model) => {
    const site = model.sites('layers.0.self_attn.q_proj')[0]!;
    const order: string[] = [];
    const noting = (name: string): AdapterSet => {
      const adapter: Adapter = {
        kind: 'note',
        point: 'linear',
        parameters: {},
        apply: (x, next) => {
          order.push(`${name} in`);
          const y = next(x);
          order.push(`${name} out`);
          return y;
        },
      };
      return { name, method: { kind: 'note', options: {} }, sites: new Map([[site.path, adapter]]), replaced: new Map(), base: '' };
    };
    model.attach(noting('near'));
    model.attach(noting('far'));
    model.active = ['near', 'far'];
    await logitsOfRows(model, rows);
    expect(order).toEqual(['far in', 'near in', 'near out', 'far out']);
  }));

it('runs another adapter for each row of a batch, and the base for the rows of none', () =>
  onTiny(async (model) => {
    model.attach(setOf('one', model.sites(['q_proj', 'embed_tokens'])));
    model.attach(setOf('two', model.sites('all-linear')));
    const index = tensor1d([1, -1, 0], 'int32');
    const row = [1, 2, 3, 4];
    const mixed = await logitsOfRows(model, [row, row, row], { view: withAdapters(index) });
    const alone = [
      await logitsOfRows(model, [row], { view: withAdapters(['two']) }),
      await logitsOfRows(model, [row], { view: withAdapters('none') }),
      await logitsOfRows(model, [row], { view: withAdapters(['one']) }),
    ];
    const size = alone[0]!.length;
    for (const [b, values] of alone.entries())
      expect(largestDifference(mixed.subarray(b * size, (b + 1) * size), values)).toBeLessThan(1e-5);
    index.dispose();
  }));

it('refuses to mix by row what is not additive', () =>
  onTiny(async (model) => {
    const site = model.sites('layers.0.self_attn.q_proj')[0]!;
    const scaled: Adapter = { kind: 'scaled', point: 'linear', parameters: {}, apply: (x, next) => add(next(x), next(x)) as Tensor2D };
    model.attach({
      name: 's',
      method: { kind: 'scaled', options: {} },
      sites: new Map([[site.path, scaled]]),
      replaced: new Map(),
      base: '',
    });
    const index = tensor1d([0, 0], 'int32');
    await expect(logitsOfRows(model, rows, { view: withAdapters(index) })).rejects.toThrow(ConfigError);
    index.dispose();
    return 3; // the batch of the call that threw
  }));

it('lists the parameters of attached adapters, whole and by stage', () =>
  onTiny((model) => {
    const bare = model.parameters().size;
    model.attach(setOf('one', model.sites('q_proj')));
    expect(model.parameters().size).toBe(bare + 4);
    expect(model.parameters().get('model.layers.0.self_attn.q_proj.a.one')?.trainable).toBe(true);
    const block = model.stages()[1]!;
    expect(
      block
        .parameters()
        .filter(({ role }) => role.startsWith('adapter'))
        .map(({ path }) => path),
    ).toEqual(['model.layers.0.self_attn.q_proj.a.one', 'model.layers.0.self_attn.q_proj.b.one']);
  }));

it('refuses a set that does not fit, and stays as it was', () =>
  onTiny(async (model) => {
    const [site] = model.sites('layers.0.self_attn.q_proj');
    const good = setOf('one', [site!]);
    model.attach(good);
    const values = await logitsOfRows(model, rows);
    const wrong = additive('x', site!);
    const set = (sites: AdapterSet['sites'], replaced: AdapterSet['replaced'] = new Map(), name = 'two'): AdapterSet => ({
      ...good,
      name,
      sites,
      replaced,
    });
    const grown = denseParameter('embed.grown', zeros([34, 16]), { role: 'embedding' });
    expect(() => model.attach(good)).toThrow(StateError);
    expect(() => model.attach(set(new Map()))).toThrow(ConfigError);
    expect(() => model.attach(set(new Map([['model.layers.0.self_attn.q_porj', wrong]])))).toThrow(/q_proj/);
    expect(() => model.attach(set(new Map([['model.layers.0.self_attn.*', wrong]])))).toThrow(NotFoundError);
    expect(() => model.attach(set(new Map([['model.embed_tokens', wrong]])))).toThrow(/is for a linear.*is a embedding/);
    expect(() => model.attach(set(new Map(), new Map([['model.embed_tokens.weight', grown]])))).toThrow(ShapeError);
    expect(() => model.attach(set(new Map(), new Map([['model.embed_tokens.weight', grown]])))).toThrow(/32,16.*34,16/);
    expect(() => model.attach(set(new Map(), new Map([['model.nothing.weight', grown]])))).toThrow(NotFoundError);
    const twin = {
      ...wrong,
      parameters: { a: denseParameter(good.sites.get(site!.path)!.parameters['a']!.path, zeros([2, 16]), { role: 'adapterA' }) },
    };
    expect(() => model.attach(set(new Map([[site!.path, twin]])))).toThrow(/second parameter/);
    expect(() => (model.active = ['one', 'nobody'])).toThrow(NotFoundError);
    expect(() => (model.active = ['one', 'one'])).toThrow(ConfigError);
    expect(() => model.detach('nobody')).toThrow(NotFoundError);
    expect(model.active).toEqual(['one']);
    expect(await logitsOfRows(model, rows)).toEqual(values);
    for (const parameter of [grown, twin.parameters.a, ...Object.values(wrong.parameters)]) parameter.dispose();
  }));

it('lets a set replace whole parameters while it is active: embedding, head, norm', () =>
  onTiny(async (model) => {
    const base = await logitsOfRows(model, rows);
    const copy = (path: string, scale: number): AdapterSet['replaced'] => {
      const old = model.parameters().get(path)!;
      const value = scale === 1 ? old.read().clone() : zeros([...old.shape]);
      return new Map([[path, denseParameter(`${path}.saved.${scale}`, value, { role: old.role })]]);
    };
    const replacing = (name: string, replaced: AdapterSet['replaced']): AdapterSet => ({
      name,
      method: { kind: 'saved', options: {} },
      sites: new Map(),
      replaced,
      base: '',
    });
    for (const path of ['model.embed_tokens.weight', 'lm_head.weight', 'model.norm.weight', 'model.layers.1.input_layernorm.weight']) {
      model.attach(replacing('same', copy(path, 1)));
      model.attach(replacing('zero', copy(path, 0)));
      expect(await logitsOfRows(model, rows)).toEqual(base);
      const zeroed = await logitsOfRows(model, rows, { view: withAdapters(['zero']) });
      expect(largestDifference(zeroed, base)).toBeGreaterThan(0.01);
      // A norm inside a block leaves the residual stream; the others carry everything.
      expect(zeroed.every((value) => value === 0)).toBe(!path.includes('layers'));
      expect(() => (model.active = ['same', 'zero'])).toThrow(/both replace/);
      disposeSet(model.detach('same'));
      disposeSet(model.detach('zero'));
    }
  }));

const zeroWeight = (path: string, shape: readonly [number, number]): Weight =>
  denseWeight(denseParameter(path, zeros([...shape]), { role: 'matrix' }));

it('replaces a weight, disposes the old one unless told to keep it, and refuses another shape', () =>
  onTiny(async (model) => {
    const path = 'model.layers.0.mlp.down_proj';
    const [site] = model.sites(path);
    const old = site!.weight!;
    const base = await logitsOfRows(model, rows);
    expect(() => model.replace(path, zeroWeight('z', [32, 16]))).toThrow(ShapeError);
    expect(() => model.replace('model.layers.0.mlp.down', old)).toThrow(/down_proj/);
    expect(() => model.replace('model.layers.*.mlp.down_proj', old)).toThrow(/stands for 2/);
    model.replace(path, zeroWeight('z', [16, 32]), { keep: true });
    expect(model.parameters().has('z')).toBe(true);
    expect(largestDifference(await logitsOfRows(model, rows), base)).toBeGreaterThan(0.001);
    const count = memory().numTensors;
    model.replace(path, old);
    expect(memory().numTensors).toBe(count - 1);
    expect(await logitsOfRows(model, rows)).toEqual(base);
    return 1; // the weight that was refused stays the caller's
  }));

it('keeps tied embeddings tied through a replacement, and says so in the config when the tie is cut', async () => {
  const tied = await tinyLlama({ tie_word_embeddings: true });
  const [embed, head] = [tied.sites('embed_tokens')[0]!, tied.sites('lm_head')[0]!];
  expect(head.tiedTo).toBe('model.embed_tokens');
  expect(head.weight).toBe(embed.weight);
  tied.replace('lm_head', zeroWeight('both', [32, 16]));
  expect(embed.weight).toBe(head.weight);
  expect(tied.info.config['tie_word_embeddings']).toBe(true);
  const { lookup: _, ...blind } = zeroWeight('blind', [32, 16]);
  expect(() => tied.replace('lm_head', blind)).toThrow(ConfigError);
  tied.replace('lm_head', blind, { untie: true });
  expect(embed.weight).not.toBe(head.weight);
  expect(head.tiedTo).toBeUndefined();
  expect(tied.info.config['tie_word_embeddings']).toBe(false);
  tied.dispose();
});

it('takes an embedding and a head of their own from a set made for a tied model', async () => {
  const before = memory().numTensors;
  const [tied, untied] = [await tinyLlama({ tie_word_embeddings: true }), await tinyLlama({}, { seed: 5 })];
  // The untied model is the tied one with this embedding and this head: all else is copied over.
  for (const [path, parameter] of tied.parameters()) {
    if (path !== 'model.embed_tokens.weight') untied.parameters().get(path)!.write(parameter.read().clone());
  }
  const saved = (path: string): [string, Parameter] => {
    const old = untied.parameters().get(path)!;
    return [path, denseParameter(`${path}.saved`, old.read().clone(), { role: old.role })];
  };
  const replaced = new Map([saved('model.embed_tokens.weight'), saved('lm_head.weight')]);
  tied.attach({ name: 'saved', method: { kind: 'saved', options: {} }, sites: new Map(), replaced, base: '' });
  expect(await logitsOfRows(tied, rows)).toEqual(await logitsOfRows(untied, rows));
  tied.dispose();
  untied.dispose();
  expect(memory().numTensors).toBe(before);
});
