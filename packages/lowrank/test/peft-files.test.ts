import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { filesFolder, memoryFolderSink, type Folder } from '@niwaki/hub';
import { ConfigError, FormatError, memory, NotFoundError, ShapeError, StateError, type RawTensor } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora, type LoraOptions } from '../src/index.ts';
import {
  adapt,
  BaseModelError,
  deleteAdapter,
  MissingTensorsError,
  RankError,
  saveAdapter,
  TensorTypeError,
  UnexpectedTensorsError,
  UnsupportedFieldError,
} from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { distance, logitsOf } from './golden.ts';
import { configOf, filesOf, perturb, rejection, renamed, rows, withConfig, withTensors, type Config, type Files } from './support.ts';

const models: Model[] = [];
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});

async function fresh(config: Config = {}): Promise<Model> {
  const model = await tinyLlama(config);
  models.push(model);
  return model;
}

/** A perturbed adapter's files and the logits it gives. */
async function written(options: LoraOptions = {}, at: string[] = ['q_proj', 'v_proj']): Promise<{ files: Files; logits: Float32Array }> {
  const model = await fresh();
  const set = await adapt(model, lora({ rank: 4, alpha: 6, ...options }), { at });
  perturb(set);
  return { files: await filesOf(set), logits: await logitsOf(model, rows) };
}

describe('saving and loading', () => {
  it.each<[string, LoraOptions, string[]]>([
    ['plain', {}, ['q_proj', 'v_proj']],
    [
      'rsLoRA with patterns',
      { rslora: true, rankPattern: { v_proj: 2 }, alphaPattern: { '^model.layers.0.self_attn.q_proj': 3 } },
      ['q_proj', 'v_proj'],
    ],
    ['DoRA', { dora: true, dropout: 0.1 }, ['down_proj']],
    ['embeddings', { dora: true }, ['embed_tokens', 'lm_head']],
    ['whole modules', { modulesToSave: ['lm_head', 'norm'] }, ['q_proj']],
    ['token rows', { trainableTokens: [3, 1] }, ['q_proj']],
    ['token rows of a head', { trainableTokens: { lm_head: [5] } }, ['q_proj']],
    ['one layer', { layersToTransform: [1], excludeModules: ['mlp.up_proj'] }, ['q_proj', 'up_proj', 'down_proj']],
  ])('gives equal logits, tensors and config: %s', async (_, options, at) => {
    const { files, logits } = await written(options, at);
    const model = await fresh();
    const set = await loadAdapter(model, files);
    expect(await logitsOf(model, rows)).toEqual(logits);
    expect(set.warnings).toEqual([]);
    const again = await filesOf(set);
    expect(configOf(again)).toEqual(configOf(files));
    expect(Buffer.compare(again.get('adapter_model.safetensors')!, files.get('adapter_model.safetensors')!)).toBe(0);
    expect(
      [...model.parameters().values()].filter((parameter) => parameter.path.includes('lora_')).some((parameter) => parameter.trainable),
    ).toBe(false);
  });

  it('writes a config with sorted fields, two spaces and the shortest targets', async () => {
    const { files } = await written();
    const text = new TextDecoder().decode(files.get('adapter_config.json'));
    const fields = Object.keys(JSON.parse(text) as Config);
    expect(fields).toEqual([...fields].sort());
    expect(fields).toHaveLength(41);
    expect(text.startsWith('{\n  "alora_invocation_tokens": null,\n  "alpha_pattern": {},')).toBe(true);
    expect(configOf(files)).toMatchObject({
      peft_type: 'LORA',
      inference_mode: true,
      r: 4,
      lora_alpha: 6,
      target_modules: ['q_proj', 'v_proj'],
      base_model_name_or_path: 'tiny-llama',
    });
    const odd = await fresh();
    const set = await adapt(odd, lora({ rank: 1 }), { at: ['model.layers.0.self_attn.q_proj', 'layers.1.mlp.*'] });
    expect(configOf(await filesOf(set))['target_modules']).toEqual([
      'model.layers.0.self_attn.q_proj',
      'model.layers.1.mlp.gate_proj',
      'model.layers.1.mlp.up_proj',
      'model.layers.1.mlp.down_proj',
    ]);
  });

  it('trains further where asked to', async () => {
    const { files } = await written();
    const model = await fresh();
    await loadAdapter(model, files, { trainable: true });
    expect(
      [...model.parameters().values()].filter((parameter) => parameter.path.includes('lora_')).every((parameter) => parameter.trainable),
    ).toBe(true);
  });

  it('reads half precision by its own dtype', async () => {
    const model = await fresh();
    const set = await adapt(model, lora({ rank: 16, alpha: 16, rslora: true }), { at: ['q_proj'] });
    perturb(set);
    const sink = memoryFolderSink();
    await saveAdapter(set, sink, { dtype: 'bf16' });
    const logits = await logitsOf(model, rows);
    const other = await fresh();
    const loaded = await loadAdapter(other, sink.files);
    const [adapter] = [...loaded.sites.values()] as unknown as { scale: number }[];
    expect(adapter!.scale).toBe(4);
    const gap = distance(await logitsOf(other, rows), logits);
    expect(gap).toBeGreaterThan(0);
    expect(gap).toBeLessThan(0.1);
  });

  it('writes to a folder all files or none, and reads them back', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'adapter-'));
    try {
      const { files, logits } = await written();
      const model = await fresh();
      const set = await loadAdapter(model, files);
      const tokenizer = { files: { tokenizer: { version: '1.0' }, config: { bos_token: '<s>' } } };
      await saveAdapter(set, folder, { tokenizer });
      expect((await readdir(folder)).sort()).toEqual([
        'adapter_config.json',
        'adapter_model.safetensors',
        'tokenizer.json',
        'tokenizer_config.json',
      ]);
      const other = await fresh();
      await loadAdapter(other, folder);
      expect(await logitsOf(other, rows)).toEqual(logits);
      const before = await readFile(join(folder, 'adapter_model.safetensors'));
      deleteAdapter(model, 'default');
      await expect(saveAdapter(set, folder)).rejects.toThrow(StateError);
      expect(Buffer.compare(await readFile(join(folder, 'adapter_model.safetensors')), before)).toBe(0);
      expect(await readdir(folder)).toHaveLength(4);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe('names of tensors', () => {
  it.each<[string, (name: string) => string]>([
    ['without the prefix', (name) => name.replace('base_model.model.', '')],
    ["with the adapter's name inside", (name) => name.replace(/lora_([AB])\.weight/, 'lora_$1.default.weight')],
    ['of a compiled model', (name) => name.replace('base_model.model.', 'base_model.model._orig_mod.')],
  ])('are understood %s', async (_, rename) => {
    const { files, logits } = await written();
    const model = await fresh();
    await loadAdapter(model, await withTensors(files, renamed(rename)));
    expect(await logitsOf(model, rows)).toEqual(logits);
  });

  it('are understood for DoRA with a weight at the end, and for modules_to_save spelled out', async () => {
    const { files, logits } = await written({ dora: true, modulesToSave: ['lm_head'] });
    const model = await fresh();
    const spelled = renamed((name) =>
      name
        .replace(/magnitude_vector$/, 'magnitude_vector.default.weight')
        .replace('lm_head.weight', 'lm_head.modules_to_save.default.weight'),
    );
    await loadAdapter(model, await withTensors(files, spelled));
    expect(await logitsOf(model, rows)).toEqual(logits);
  });

  it('with an alien prefix are an error that lists them, strict or not, and nothing is attached', async () => {
    const { files } = await written();
    const model = await fresh();
    const alien = await withTensors(
      files,
      renamed((name) => name.replace('base_model.model.model', 'transformer.text_model')),
    );
    for (const strict of [true, false]) {
      const error = await rejection(loadAdapter(model, alien, { strict }));
      expect(error).toBeInstanceOf(UnexpectedTensorsError);
      expect(error.details['unexpected']).toHaveLength(8);
    }
    expect(model.adapters.size).toBe(0);
  });

  it('that mean one tensor twice are refused', async () => {
    const { files } = await written();
    const model = await fresh();
    const twice = await withTensors(files, (tensors) => {
      const [name] = [...tensors.keys()] as [string];
      return new Map([...tensors, [name.replace('base_model.model.', ''), tensors.get(name)!]]);
    });
    expect((await rejection(loadAdapter(model, twice))).message).toContain('mean the same tensor');
  });
});

describe('a file that does not fit', () => {
  const firstA = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';
  const without = (name: string) => (tensors: Map<string, RawTensor>) => (tensors.delete(name), tensors);
  const changed = (name: string, change: (raw: RawTensor) => RawTensor) => (tensors: Map<string, RawTensor>) =>
    tensors.set(name, change(tensors.get(name)!));

  it('fails with an error of its own kind, and the model is as it was', async () => {
    const { files } = await written();
    const model = await fresh();
    const base = await logitsOf(model, rows);
    const tensors = memory().numTensors;
    const cases: [Files, new (message: string) => Error, Config][] = [
      [await withTensors(files, without(firstA)), MissingTensorsError, { missing: ['model.layers.0.self_attn.q_proj.lora_A.weight'] }],
      [
        await withTensors(files, (all) => all.set('base_model.model.model.layers.0.mlp.up_proj.lora_A.weight', all.get(firstA)!)),
        UnexpectedTensorsError,
        { unexpected: ['base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'] },
      ],
      [
        await withTensors(
          files,
          changed(firstA, (raw) => ({ ...raw, shape: [2, 32] })),
        ),
        ShapeError,
        { tensor: firstA, given: [2, 32] },
      ],
      [
        await withTensors(
          files,
          changed(firstA, (raw) => ({ ...raw, dtype: 'I32' })),
        ),
        TensorTypeError,
        { dtype: 'I32' },
      ],
      [withConfig(files, (config) => ({ ...config, r: 5 })), RankError, { expected: 5, given: 4 }],
      [withConfig(files, (config) => ({ ...config, use_dora: true })), MissingTensorsError, {}],
      [withConfig(files, (config) => ({ ...config, target_modules: ['q_proj'] })), UnexpectedTensorsError, {}],
      [withConfig(files, (config) => ({ ...config, target_modules: ['qproj'] })), NotFoundError, {}],
      [withConfig(files, (config) => ({ ...config, target_modules: '(q' })), FormatError, {}],
      [withConfig(files, (config) => ({ ...config, modules_to_save: ['lm_haed'] })), NotFoundError, {}],
    ];
    for (const [broken, Kind, details] of cases) {
      const error = await rejection(loadAdapter(model, broken));
      expect(error.constructor).toBe(Kind);
      expect(error.details).toMatchObject(details);
    }
    expect(model.adapters.size).toBe(0);
    expect(memory().numTensors).toBe(tensors);
    expect(await logitsOf(model, rows)).toEqual(base);
  });

  it('is refused where two halves of a pair disagree about the rank', async () => {
    const { files } = await written();
    const broken = await withTensors(
      files,
      changed(firstA, (raw) => ({ ...raw, shape: [2, 16], bytes: raw.bytes.subarray(0, 128) })),
    );
    expect(await rejection(loadAdapter(await fresh(), broken, { strict: false }))).toBeInstanceOf(RankError);
  });

  it('with strict: false gives what fits and says what was left', async () => {
    const { files } = await written();
    const model = await fresh();
    const partial = await withTensors(files, without(firstA));
    const set = await loadAdapter(model, partial, { strict: false });
    expect(set.sites.size).toBe(3);
    expect(set.warnings.map(({ kind }) => kind)).toEqual(['skipped-tensor']);
    expect(set.warnings[0]!.names).toContain('model.layers.0.self_attn.q_proj.lora_A.weight');
    const other = await fresh();
    const ranked = await loadAdapter(
      other,
      withConfig(files, (config) => ({ ...config, r: 8 })),
      { strict: false },
    );
    expect(ranked.warnings.some(({ kind }) => kind === 'rank')).toBe(true);
    expect([...ranked.sites.values()].map((adapter) => (adapter as unknown as { scale: number }).scale)).toEqual([1.5, 1.5, 1.5, 1.5]);
  });

  it('of another vocabulary says both shapes', async () => {
    const grown = await tinyLlama({ vocab_size: 34 });
    models.push(grown);
    const set = await adapt(grown, lora({ rank: 2, modulesToSave: ['embed_tokens'] }), { at: ['q_proj'] });
    const error = await rejection(loadAdapter(await fresh(), await filesOf(set)));
    expect(error).toBeInstanceOf(ShapeError);
    expect(error.message).toContain('[34,16]');
    expect(error.message).toContain('[32,16]');
  });

  it('of another base is a warning, or an error where that was asked', async () => {
    const { files } = await written();
    const other = withConfig(files, (config) => ({ ...config, base_model_name_or_path: 'someone/else' }));
    const model = await fresh();
    expect(await rejection(loadAdapter(model, other, { base: 'require' }))).toBeInstanceOf(BaseModelError);
    const set = await loadAdapter(model, other);
    expect(set.warnings.map(({ kind }) => kind)).toEqual(['base-name']);
    expect(set.base).toBe('someone/else');
  });

  it('is closed where it is refused', async () => {
    const { files } = await written();
    const model = await fresh();
    const open = new Set<string>();
    const watched = (given: ReadonlyMap<string, Uint8Array>): Folder => {
      const inner = filesFolder(given);
      return {
        ...inner,
        open: async (file) => {
          const source = await inner.open(file);
          if (source !== undefined) open.add(file);
          return source && { ...source, close: async () => void open.delete(file) };
        },
      };
    };
    const broken = new Map(files).set('adapter_model.safetensors', new Uint8Array(9));
    const pickle = new Map([...files].filter(([file]) => file === 'adapter_config.json')).set('adapter_model.bin', new Uint8Array(8));
    for (const given of [broken, pickle]) {
      expect(await rejection(loadAdapter(model, watched(given)))).toBeInstanceOf(FormatError);
      expect([...open]).toEqual([]);
    }
    await loadAdapter(model, watched(files));
    expect([...open]).toEqual([]);
  });

  it('that is no adapter, or a pickle, says so', async () => {
    const { files } = await written();
    const model = await fresh();
    expect(await rejection(loadAdapter(model, new Map()))).toBeInstanceOf(NotFoundError);
    const pickle = new Map(files).set('adapter_model.bin', new Uint8Array(8));
    pickle.delete('adapter_model.safetensors');
    expect((await rejection(loadAdapter(model, pickle))).message).toContain('pickle');
    expect(
      await rejection(loadAdapter(model, new Map(files).set('adapter_config.json', new TextEncoder().encode('{"r": NaN}')))),
    ).toBeInstanceOf(FormatError);
    const cut = new Map(files).set('adapter_model.safetensors', files.get('adapter_model.safetensors')!.subarray(0, 900));
    expect(await rejection(loadAdapter(model, cut))).toBeInstanceOf(FormatError);
    const folder = await mkdtemp(join(tmpdir(), 'adapter-'));
    await writeFile(join(folder, 'x.txt'), 'x');
    expect(await rejection(loadAdapter(model, folder))).toBeInstanceOf(NotFoundError);
    await rm(folder, { recursive: true });
  });

  it('whose name is taken is refused before it is read', async () => {
    const { files } = await written();
    const model = await fresh();
    await loadAdapter(model, files);
    expect(await rejection(loadAdapter(model, files))).toBeInstanceOf(StateError);
    await loadAdapter(model, files, { name: 'second' });
    expect(model.active).toEqual(['default']);
  });
});

describe('the config of a file', () => {
  const without = (field: string) => (config: Config) => Object.fromEntries(Object.entries(config).filter(([name]) => name !== field));

  it('may have fields of the future: null is passed over, the rest is named', async () => {
    const { files, logits } = await written();
    const model = await fresh();
    const set = await loadAdapter(
      model,
      withConfig(files, (config) => ({ ...config, foo: null, bar: { x: 1 }, runtime_config: { y: 2 } })),
    );
    expect(set.warnings.map(({ kind, names }) => [kind, names])).toEqual([['unknown-field', ['bar']]]);
    expect(await logitsOf(model, rows)).toEqual(logits);
  });

  it("without an alpha means PEFT's default of 8 at every rank, and says so", async () => {
    const { files } = await written({ rankPattern: { v_proj: 2 } });
    const model = await fresh();
    const bare = withConfig(files, without('lora_alpha'));
    const set = await loadAdapter(model, bare);
    expect(set.warnings.map(({ kind, names }) => [kind, names])).toEqual([['default-field', ['lora_alpha']]]);
    expect([...set.sites.values()].map((adapter) => (adapter as unknown as { scale: number }).scale)).toEqual([2, 4, 2, 4]);
  });

  it('without a rank takes that of the tensors', async () => {
    const { files, logits } = await written();
    const model = await fresh();
    await loadAdapter(model, withConfig(files, without('r')));
    expect(await logitsOf(model, rows)).toEqual(logits);
  });

  it.each<[string, unknown]>([
    ['use_qalora', true],
    ['alora_invocation_tokens', [1]],
    ['layer_replication', [[0, 1]]],
    ['use_bdlora', { x: 1 }],
    ['arrow_config', { x: 1 }],
    ['kasa_config', { x: 1 }],
    ['monteclora_config', { x: 1 }],
    ['target_parameters', ['experts']],
    ['ensure_weight_tying', true],
    ['init_lora_weights', 'pissa_niter_4'],
    ['init_lora_weights', 'loftq'],
  ])('with %s = %j changes the maths and is refused by name', async (field, value) => {
    const { files } = await written();
    const error = await rejection(
      loadAdapter(
        await fresh(),
        withConfig(files, (config) => ({ ...config, [field]: value })),
      ),
    );
    expect(error).toBeInstanceOf(UnsupportedFieldError);
    expect(error.details['fields']).toEqual([field]);
  });

  it.each<[string, unknown]>([
    ['peft_type', undefined],
    ['peft_type', 'VERA'],
    ['task_type', 'COOKING'],
    ['r', 0],
    ['r', '8'],
    ['lora_alpha', 0],
    ['lora_dropout', 1],
    ['bias', 'some'],
    ['rank_pattern', { q_proj: 0 }],
    ['alpha_pattern', { q_proj: 0 }],
    ['target_modules', 3],
  ])('with %s = %j is refused', async (field, value) => {
    const { files } = await written();
    const error = await rejection(
      loadAdapter(
        await fresh(),
        withConfig(files, (config) => ({ ...config, [field]: value })),
      ),
    );
    expect(error instanceof FormatError || error instanceof ConfigError).toBe(true);
    expect(error.message).toContain(field);
  });

  it('means by its patterns what PEFT means: the first key in order, at the end of the path', async () => {
    const model = await fresh();
    const set = await adapt(
      model,
      lora({
        rank: 4,
        alpha: 8,
        rankPattern: { '^model.layers.0.self_attn.q_proj': 1, q_proj: 2, 'layers.1.self_attn.v_proj': 8, nope: 3 },
      }),
      { at: ['q_proj', 'v_proj'] },
    );
    const ranks = Object.fromEntries(
      [...set.sites].map(([path, adapter]) => [path, (adapter as unknown as { rank: number; scale: number }).rank]),
    );
    expect(ranks).toEqual({
      'model.layers.0.self_attn.q_proj': 1,
      'model.layers.0.self_attn.v_proj': 4,
      'model.layers.1.self_attn.q_proj': 2,
      'model.layers.1.self_attn.v_proj': 8,
    });
    expect([...set.sites.values()].map((adapter) => (adapter as unknown as { scale: number }).scale)).toEqual([8, 2, 4, 1]);
    expect(set.warnings.map(({ names }) => names)).toEqual([['nope']]);
    const { files } = { files: await filesOf(set) };
    const again = await loadAdapter(await fresh(), files);
    expect(again.sites.size).toBe(4);
  });
});
