import { AbortError, ConfigError, DataError, memory } from '@niwaki/tensor';
import { causalLM } from '@niwaki/engine';
import type { Loaded } from '@niwaki/hub';
import { adapterFiles, lora } from '@niwaki/lowrank';
import { adapt, loadAdapter, saveAdapter } from '@niwaki/peft';
import { adamw, schedules, sgd } from '@niwaki/optim';
import { nf4, quantize } from '@niwaki/quant';
import { byteTokenizer, byteVocabularySize, tinyLlama } from '@niwaki/testing';
import { describe, expect, it } from 'vitest';
import {
  memoryFolder,
  parseRecipe,
  recipeNames,
  runRecipe,
  type Recipe,
  type RecipeEvent,
  type RecipeKit,
  type RunFolder,
} from '../src/index.ts';

const files: Readonly<Record<string, string>> = {
  'notes.txt': 'The gardener trims the pine.\n\nThe pine grows slowly.',
  'chats.jsonl':
    '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}\n{"messages":[{"role":"user","content":"hi"}]}\n',
  'batches.json': '[[[1,2,3]],[[4,5,6]]]',
  'cut.json': '[[[1,2,',
};

const kit: RecipeKit = {
  init: async () => ({ device: 'test', reason: 'as it is' }),
  load: async (): Promise<Loaded> => {
    const model = await tinyLlama({ vocab_size: byteVocabularySize }, { trainable: false });
    return { model, tokenizer: byteTokenizer(), config: model.info.config as Loaded['config'], warnings: ['a warning'] };
  },
  readText: async (path) => files[path] ?? Promise.reject(new Error(`no ${path}`)),
  folder: () => memoryFolder(),
  prune: {},
  quantize: { nf4: (options) => nf4(options as never) },
  adapt: { lora: (options) => lora(options as never) },
  pruneModel: () => Promise.reject(new Error('no pruner')),
  quantizeModel: (model, method, { at }) => quantize(model, method, { at }),
  adaptModel: (model, method, { at, seed }) => adapt(model, method, { at, seed }),
  loadAdapter: (model, source, options) => loadAdapter(model, source, { types: adapterFiles, ...options }),
  saveAdapter,
  saveModel: async () => {},
  saveStored: async () => {},
  optimizers: { adamw: (options) => adamw(options as never), sgd: (options) => sgd(options as never) },
  schedules: schedules as unknown as RecipeKit['schedules'],
  objectives: { causalLM },
};

const recipe = (more: Partial<Recipe> = {}): Recipe =>
  parseRecipe({ model: 'tiny', data: 'notes.txt', context: 16, rank: 2, steps: 3, ...more });
const readJson = async (folder: RunFolder, name: string): Promise<unknown> => JSON.parse(new TextDecoder().decode(await folder.read(name)));

describe('running a recipe', () => {
  it('tells what happens, and leaves the recipe, the record, a checkpoint and the adapter in its folder', async () => {
    const folder = memoryFolder();
    const events: RecipeEvent[] = [];
    const { model, adapter, steps, loss } = await runRecipe(recipe({ split: 'blank-line', clip: 0 }), kit, {
      folder,
      onEvent: (event) => events.push(event),
    });
    expect(events.map(({ kind }) => kind)).toEqual(['device', 'warning', 'ready', 'step', 'step', 'step', 'checkpoint']);
    // 'The gardener trims the pine.' in pieces of 16 and 13 with the end of text, the other in 16 and 7.
    expect(events[2]).toMatchObject({ rows: 4, tokens: 52, targets: 48, dropped: 0 });
    expect(steps).toBe(3);
    expect(loss).toBeGreaterThan(0);
    expect(adapter!.sites.size).toBe(14);
    expect([...(await folder.list())].sort()).toEqual([
      'adapter_config.json',
      'adapter_model.safetensors',
      'base.json',
      'checkpoints',
      'recipe.json',
      'run.jsonl',
    ]);
    expect(await readJson(folder, 'recipe.json')).toEqual(recipe({ split: 'blank-line', clip: 0 }));
    model.dispose();
  });

  it('says how many documents had nothing to learn', async () => {
    const events: RecipeEvent[] = [];
    const { model } = await runRecipe(recipe({ data: 'chats.jsonl', context: 64, pack: false }), kit, {
      onEvent: (event) => events.push(event),
    });
    expect(events.find(({ kind }) => kind === 'ready')).toMatchObject({ rows: 1, dropped: 1 });
    model.dispose();
  });

  it('binds functions by the names it gives them', async () => {
    const asked = recipe({
      at: { function: 'onlyQ' },
      optimizer: { function: 'mine' },
      objective: { function: 'loss' },
      schedule: { function: 'rates' },
    });
    const rates = { kind: 'mine', options: {}, rate: (step: number) => 0.01 / (step + 1), toJSON: () => ({ kind: 'mine' }) };
    const functions = {
      onlyQ: ({ path }: { path: string }) => path.endsWith('q_proj'),
      mine: sgd({ learningRate: 1 }),
      loss: causalLM(),
      rates,
    };
    const seen: number[] = [];
    const { model, adapter } = await runRecipe(asked, kit, {
      functions,
      onEvent: (event) => event.kind === 'step' && seen.push(event.learningRate),
    });
    expect([...adapter!.sites.keys()].every((path) => path.endsWith('q_proj'))).toBe(true);
    expect(seen).toEqual([0.01, 0.005, 0.01 / 3]);
    model.dispose();
  });

  it('has a default for everything but the model and the data', async () => {
    const cut = runRecipe(parseRecipe({ model: 'tiny', batches: 'cut.json' }), kit);
    await expect(cut).rejects.toThrow(DataError);
    await expect(cut).rejects.toThrow(/cut.json is not JSON: .*\n {2}help: Expected an array of batches/);
    const { model, steps } = await runRecipe(parseRecipe({ model: 'tiny', batches: 'batches.json' }), kit);
    expect(steps).toBe(2);
    model.dispose();
  });

  it('gives options of its own to a factory, under what the recipe says at the top', async () => {
    const { model, adapter } = await runRecipe(
      recipe({ adapt: { kind: 'lora', rslora: true, at: ['v_proj'] }, quantize: { kind: 'nf4', blockSize: 32, at: ['up_proj'] } }),
      kit,
    );
    expect(adapter!.method.options).toMatchObject({ rank: 2, rslora: true });
    expect([...adapter!.sites.keys()]).toEqual(['model.layers.0.self_attn.v_proj', 'model.layers.1.self_attn.v_proj']);
    expect(model.sites('up_proj')[0]!.weight!.kind).toBe('codebook4');
    model.dispose();
  });

  it('reports the loss on another text on the way', async () => {
    const events: RecipeEvent[] = [];
    const { model } = await runRecipe(recipe({ evaluate: 'notes.txt', evaluateEvery: 2 }), kit, { onEvent: (event) => events.push(event) });
    const evaluations = events.flatMap((event) => (event.kind === 'evaluation' ? [event] : []));
    expect(evaluations.map(({ step }) => step)).toEqual([2, 3]);
    expect(Object.keys(evaluations[0]!.metrics)).toEqual(['tokens', 'nll', 'perplexity', 'bitsPerByte']);
    model.dispose();
  });

  it('resumes its folder, without the lines of steps that are taken again', async () => {
    const folder = memoryFolder();
    const controller = new AbortController();
    const asked = recipe({ steps: 5, dropout: 0.1 });
    const stopped = runRecipe(asked, kit, {
      folder,
      signal: controller.signal,
      onEvent: (event) => event.kind === 'step' && event.step === 2 && controller.abort(),
    });
    await expect(stopped).rejects.toThrow(AbortError);
    // As a killed process leaves it: a step beyond the checkpoint, and half a line.
    await folder.append('run.jsonl', new TextEncoder().encode('{"step":3,"loss":99}\n{"step":4,"lo'));
    const { model } = await runRecipe(asked, kit, { folder, resume: true });
    const whole = memoryFolder();
    (await runRecipe(asked, kit, { folder: whole })).model.dispose();
    const lines = async (from: RunFolder): Promise<unknown[]> =>
      new TextDecoder()
        .decode(await from.read('run.jsonl'))
        .trim()
        .split('\n')
        .map((line) => {
          const { step, loss, gradNorm } = JSON.parse(line) as Record<string, unknown>;
          return { step, loss, gradNorm };
        });
    expect(await lines(folder)).toEqual(await lines(whole));
    expect(await folder.read('adapter_model.safetensors')).toEqual(await whole.read('adapter_model.safetensors'));
    model.dispose();
  });

  it.each<[Record<string, unknown>, RegExp]>([
    [{ optimizer: 'adamv' }, /optimizer: there is no 'adamv'[^]*Did you mean 'adamw'/],
    [{ schedule: { kind: 'cosin' } }, /schedule: there is no 'cosin'/],
    [{ adapt: 'lara' }, /adapt: there is no 'lara'/],
    [{ quantize: 'nf5' }, /quantize: there is no 'nf5'/],
    [{ objective: { function: 'reward' } }, /function 'reward'/],
    [{ objective: { function: 'constructor' } }, /function 'constructor'/],
    [{ context: 65 }, /context 65 is more than the model's 64/],
    [{ at: 'q_prj' }, /q_prj/],
    [{ quantize: 'nf4', adapt: { kind: 'lora', init: 'pissa' } }, /lora \(pissa\) needs .*, which nf4 does not give \(floats\)/],
    [{ warmup: 2, schedule: 'constant', learningRate: 1, clip: 0, data: undefined }, /neither data nor batches/],
  ])('%j is refused, and nothing is left behind', async (more, message) => {
    const before = memory().numTensors;
    const json = JSON.parse(JSON.stringify({ model: 'tiny', data: 'notes.txt', context: 16, rank: 2, steps: 3, ...more })) as unknown;
    await expect(runRecipe(parseRecipe(json), kit)).rejects.toThrow(message);
    expect(memory().numTensors).toBe(before);
  });
});

describe('reading a recipe', () => {
  it('gives back what was written', () => {
    const full: Recipe = {
      model: 'm',
      data: 'd',
      quantize: { kind: 'nf4', doubleQuant: true },
      adapt: 'lora',
      at: ['a', 'b'],
      rank: 4,
      clip: 0,
      device: 'wasm',
      threads: 2,
      out: 'o',
    };
    expect(parseRecipe(JSON.parse(JSON.stringify(full)))).toEqual(full);
  });

  it('knows each name once', () => {
    expect(new Set(recipeNames).size).toBe(recipeNames.length);
  });

  it.each<[Record<string, unknown>, RegExp]>([
    [{}, /recipe: model/],
    [{ model: '' }, /model: expected a name/],
    [{ model: 'm', learning_rate: 1 }, /there is no 'learning_rate'[^]*Did you mean 'learningRate'/],
    [{ model: 'm', batch_size: 1 }, /Did you mean 'batchSize'/],
    [{ model: 'm', rank: 1.5 }, /rank: expected a whole number, got 1.5/],
    [{ model: 'm', alpha: 0 }, /alpha: expected more than 0, got 0/],
    [{ model: 'm', dropout: -0.1 }, /dropout: expected at least 0, got -0.1/],
    [{ model: 'm', context: 1 }, /context: expected at least 2, got 1/],
    [{ model: 'm', recompute: 'some' }, /recompute: .*"full" \| "selective" \| "none"/],
    [{ model: 'm', clip: -1 }, /clip: expected at least 0, got -1/],
    [{ model: 'm', seed: -1 }, /seed: expected at least 0/],
    [{ model: 'm', device: 'tpu' }, /device: .*tpu/],
    [{ model: 'm', at: [] }, /at: expected a pattern/],
    [{ model: 'm', data: 'a', batches: 'b' }, /data or batches/],
    [{ model: 'm', steps: 1, epochs: 1 }, /steps or epochs/],
    [{ model: 'm', memoryBudget: 1, recompute: 'none' }, /memoryBudget or recompute/],
  ])('%j is refused by name', (json, message) => {
    expect(() => parseRecipe(json)).toThrow(ConfigError);
    expect(() => parseRecipe(json)).toThrow(message);
  });
});
