import { describe, expect, it } from 'vitest';
import { memorySource, openSafetensors } from '@niwaki/hub';
import { memory } from '@niwaki/tensor';
import { exactBatches } from '@niwaki/train';
import { maskOf } from '@niwaki/weights';
import {
  adamw,
  adapt,
  FormatError,
  filesFolder,
  load,
  lora,
  magnitude,
  nf4,
  prune,
  quantize,
  saveModel,
  saveQuantized,
  train,
  type Model,
} from '../src/index.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const modelOf = (): Promise<Model> => tinyLlama({}, { trainable: false });
const at = (model: Model, path: string): NonNullable<ReturnType<Model['sites']>[number]['weight']> => model.sites(path)[0]!.weight!;
async function valuesOf(model: Model, path: string): Promise<number[]> {
  const dense = at(model, path).dense();
  const values = [...(await dense.data())];
  dense.dispose();
  return values;
}
const configOf = (files: ReadonlyMap<string, Uint8Array>): Record<string, unknown> =>
  JSON.parse(new TextDecoder().decode(files.get('config.json')));
const withConfig = (files: ReadonlyMap<string, Uint8Array>, niwaki: unknown): ReadonlyMap<string, Uint8Array> =>
  new Map([...files, ['config.json', new TextEncoder().encode(JSON.stringify({ ...configOf(files), niwaki }))]]);
const up = 'model.layers.0.mlp.up_proj';
const down = 'model.layers.1.mlp.down_proj';

/** A pruned model's files. */
async function prunedFiles(options: object, dtype: 'f32' | 'f16' = 'f32'): Promise<{ model: Model; files: Map<string, Uint8Array> }> {
  const model = await modelOf();
  await prune(model, magnitude(options));
  const files = new Map<string, Uint8Array>();
  await saveModel(model, files, { dtype });
  return { model, files };
}

describe('a pruned model in files', () => {
  it.each([
    ['masked', { sparsity: 0.5 }, { store: 'masked' }],
    ['csr', { sparsity: 0.75, store: 'csr' }, { store: 'csr' }],
    ['n-of-m', { n: 2, m: 4, store: 'n-of-m' }, { store: 'n-of-m', n: 2, m: 4 }],
  ])('comes back as it was stored: %s', async (kind, options, form) => {
    const before = memory().numTensors;
    const { model, files } = await prunedFiles(options);
    const sites = model.sites('all-linear').map(({ path }) => path);
    expect(configOf(files)['niwaki']).toEqual({ sparse: [{ sites, ...form }] });
    const { model: loaded, warnings } = await load(filesFolder(files));
    expect(warnings).toEqual([]);
    for (const path of sites) {
      expect(at(loaded, path).kind).toBe(kind);
      expect(at(loaded, path).options).toEqual(at(model, path).options);
      expect(await valuesOf(loaded, path)).toEqual(await valuesOf(model, path));
      expect(await maskOf(at(loaded, path))).toEqual(await maskOf(at(model, path)));
    }
    const again = new Map<string, Uint8Array>();
    await saveModel(loaded, again);
    expect(again.get('model.safetensors')).toEqual(files.get('model.safetensors'));
    expect(configOf(again)).toEqual(configOf(files));
    for (const each of [model, loaded]) each.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each(['masked', 'csr', 'n-of-m'] as const)('stays in half precision where it is loaded so: %s', async (store) => {
    const before = memory().numTensors;
    const { model, files } = await prunedFiles({ n: 2, m: 4, store }, 'f16');
    const { model: loaded } = await load(filesFolder(files), { dtype: 'stored' });
    const { kind, options } = at(loaded, up);
    expect(kind).toBe(store);
    const { base, values } = options as { base?: unknown; values?: unknown };
    expect(base ?? values).toMatchObject({ kind: 'gguf', options: { format: 'F16' } });
    const { model: wide } = await load(filesFolder(files));
    expect(await valuesOf(loaded, up)).toEqual(await valuesOf(wide, up));
    expect((await valuesOf(loaded, up)).filter((value) => value === 0)).toHaveLength(16 * 32 * 0.5);
    for (const each of [model, wide, loaded]) each.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('is an ordinary tensor for whoever knows nothing of it', async () => {
    const { model, files } = await prunedFiles({ sparsity: 0.5 });
    const file = await openSafetensors(memorySource(files.get('model.safetensors')!));
    expect(file.names().filter((name) => name.startsWith(up))).toEqual([`${up}.weight`]);
    const { dtype, bytes } = await file.read(`${up}.weight`);
    expect(dtype).toBe('F32');
    expect([...new Float32Array(bytes.slice().buffer)]).toEqual(await valuesOf(model, up));
    model.dispose();
  });

  it.each(['masked', 'csr', 'n-of-m'] as const)('keeps its zeros when it is loaded and trained whole: %s', async (store) => {
    const { model: first, files } = await prunedFiles({ n: 1, m: 4, store });
    first.dispose();
    const { model } = await load(filesFolder(files));
    const zeros = async (): Promise<boolean[]> => (await valuesOf(model, down)).map((value) => value === 0);
    const before = await zeros();
    const values = await valuesOf(model, down);
    for (const parameter of model.parameters().values())
      parameter.trainable = ['matrix', 'values', 'embedding', 'head', 'norm'].includes(parameter.role);
    const data = exactBatches([[[1, 5, 9, 3, 7]], [[2, 4, 8, 16, 1]]], { vocabularySize: 32 });
    const losses: number[] = [];
    for await (const event of train(model, { data, optimizer: adamw({ learningRate: 0.01 }), epochs: 8 }))
      if (event.kind === 'step') losses.push(event.loss);
    expect(losses.at(-1)!).toBeLessThan(losses[1]! - 0.1);
    expect(await valuesOf(model, down)).not.toEqual(values);
    expect((await zeros()).every((zero, e) => zero || !before[e])).toBe(true);
    model.dispose();
  });

  it('holds each matrix in its own form, and beside them quantized ones', async () => {
    const before = memory().numTensors;
    const model = await modelOf();
    await prune(model, magnitude({ sparsity: 0.5 }), { at: 'up_proj' });
    await prune(model, magnitude({ n: 2, m: 4, store: 'n-of-m' }), { at: down });
    await quantize(model, nf4({ blockSize: 64 }), { at: 'q_proj' });
    const files = new Map<string, Uint8Array>();
    await saveQuantized(model, files);
    const { model: loaded } = await load(filesFolder(files));
    const kinds = (of: Model): string[] => of.sites('all-linear').map(({ weight }) => weight!.kind);
    expect(new Set(kinds(model))).toEqual(new Set(['masked', 'n-of-m', 'codebook4', 'dense']));
    expect(kinds(loaded)).toEqual(kinds(model));
    expect(await valuesOf(loaded, down)).toEqual(await valuesOf(model, down));
    for (const each of [model, loaded]) each.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('says no more of zeros once they are gone', async () => {
    const { model, files } = await prunedFiles({ sparsity: 0.5 });
    model.dispose();
    const { model: loaded } = await load(filesFolder(files));
    await quantize(loaded, nf4({ blockSize: 64 }));
    const again = new Map<string, Uint8Array>();
    await saveModel(loaded, again);
    expect(configOf(again)).not.toHaveProperty('niwaki');
    loaded.dispose();
  });

  it('carries adapters that learn after it is loaded', async () => {
    const { model: first, files } = await prunedFiles({ sparsity: 0.5 });
    first.dispose();
    const { model } = await load(filesFolder(files));
    const before = await valuesOf(model, up);
    await adapt(model, lora({ rank: 2, alpha: 4 }), { at: 'all-linear' });
    const data = exactBatches([[[1, 5, 9, 3, 7]]], { vocabularySize: 32 });
    const losses: number[] = [];
    for await (const event of train(model, { data, optimizer: adamw({ learningRate: 0.02 }), epochs: 8 }))
      if (event.kind === 'step') losses.push(event.loss);
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.1);
    expect(await valuesOf(model, up)).toEqual(before);
    model.dispose();
  });

  it.each<[string, unknown, RegExp]>([
    ['no list', 'all', /niwaki\.sparse of the config is no list/],
    ['an entry that is nothing', [null], /niwaki\.sparse\[0\]\.store of the config must be 'masked', 'n-of-m' or 'csr', got undefined/],
    ['an unknown store', [{ sites: [up], store: 'bitmask' }], /niwaki\.sparse\[0\]\.store .* got "bitmask"/],
    ['no sites', [{ store: 'masked' }], /niwaki\.sparse\[0\] of the config: sites must be a list of paths/],
    ['sites that are no paths', [{ sites: [7], store: 'masked' }], /sites must be a list of paths/],
    [
      'a path that is not there',
      [{ sites: ['model.layers.7.mlp.up_proj'], store: 'masked' }],
      /'model\.layers\.7\.mlp\.up_proj' is no matrix/,
    ],
    ['a pattern', [{ sites: ['*'], store: 'masked' }], /'\*' is no matrix of the model/],
    ['what is no matrix', [{ sites: ['model.norm'], store: 'masked' }], /'model\.norm' is no matrix/],
    [
      'a matrix named twice',
      [
        { sites: [up], store: 'masked' },
        { sites: [down, up], store: 'csr' },
      ],
      /niwaki\.sparse\[1\] of the config: '.*up_proj' is named twice/,
    ],
    ['n and m that cannot be', [{ sites: [up], store: 'n-of-m', n: 5, m: 4 }], /n must be a whole number from 1 to 3, got 5/],
    ['an m that is no number', [{ sites: [up], store: 'n-of-m', n: 2, m: '4' }], /m must be 4, 8, 16 or 32, got 4/],
    ['no n and m', [{ sites: [up], store: 'n-of-m' }], /m must be 4, 8, 16 or 32, got undefined/],
    [
      'zeros that are not those of its pattern',
      [{ sites: [up], store: 'n-of-m', n: 1, m: 4 }],
      /entries are kept in a group of 4, 1:4 holds 1/,
    ],
    ['an m that does not divide its rows', [{ sites: [up], store: 'n-of-m', n: 31, m: 32 }], /rows of 16 entries are not groups of 32/],
    ['a form without rows to look up', [{ sites: ['model.embed_tokens'], store: 'csr' }], /model\.embed_tokens/],
  ])('is refused with %s', async (_, sparse, message) => {
    const before = memory().numTensors;
    const { model, files } = await prunedFiles({ n: 2, m: 4 });
    model.dispose();
    const loading = load(filesFolder(withConfig(files, { sparse })));
    await expect(loading).rejects.toThrow(message);
    await expect(loading).rejects.toThrow(FormatError);
    expect(memory().numTensors).toBe(before);
  });

  it('is refused where a quantized matrix is to have zeros that stay', async () => {
    const before = memory().numTensors;
    const model = await modelOf();
    await quantize(model, nf4({ blockSize: 64 }), { at: 'up_proj' });
    const files = new Map<string, Uint8Array>();
    await saveQuantized(model, files);
    model.dispose();
    const loading = load(filesFolder(withConfig(files, { sparse: [{ sites: [up], store: 'masked' }] })));
    await expect(loading).rejects.toThrow(/'model\.layers\.0\.mlp\.up_proj' is stored as codebook4/);
    expect(memory().numTensors).toBe(before);
  });
});
