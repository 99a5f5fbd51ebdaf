import { byteTokenizer, byteVocabularySize, tinyLlama } from '../../testing/src/index.ts';
import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import {
  AbortError,
  ConfigError,
  memoryFolder,
  parseRecipe,
  runRecipe,
  type Loaded,
  type Model,
  type Recipe,
  type RecipeEvent,
  type RecipeKit,
  type RunRecipeOptions,
} from '../src/index.ts';

const files: Readonly<Record<string, string>> = {
  'notes.txt': 'The gardener trims the pine. The pine grows slowly.',
  'others.txt': 'Moss covers the stones by the gate, and a lantern stands where the path turns.',
};
const kit: Partial<RecipeKit> = {
  init: async () => ({ device: 'test', reason: 'as it is' }),
  load: async (): Promise<Loaded> => {
    const model = await tinyLlama({ vocab_size: byteVocabularySize }, { trainable: false });
    return { model, tokenizer: byteTokenizer(), config: model.info.config as Loaded['config'], warnings: [] };
  },
  readText: async (path) => files[path] ?? Promise.reject(new Error(`no ${path}`)),
};
const recipe = (more: Partial<Recipe>): Recipe =>
  parseRecipe({ model: 'tiny', data: 'notes.txt', context: 16, rank: 2, steps: 4, ...more });
const run = (more: Partial<Recipe>, options: RunRecipeOptions = {}): ReturnType<typeof runRecipe> =>
  runRecipe(recipe(more), { kit, ...options });
const looking = { calibrate: 'others.txt', calibrateWindows: 3, calibrateContext: 12 } as const;

async function zerosOf(model: Model, at: string): Promise<number> {
  const dense = model.sites(at)[0]!.weight!.dense();
  const values = [...(await dense.data())];
  dense.dispose();
  return values.filter((value) => value === 0).length / values.length;
}

describe('a recipe that changes the model first', () => {
  it('prunes, then quantizes, then adapts, and tells of each matrix', async () => {
    const events: RecipeEvent[] = [];
    const { model, adapter } = await run(
      {
        prune: { kind: 'dsnot', initial: { kind: 'sparsegpt', n: 2, m: 4 } },
        quantize: { kind: 'nf4', blockSize: 32, at: 'up_proj' },
        ...looking,
      },
      { onEvent: (event) => events.push(event) },
    );
    const changes = events.flatMap((event) => (event.kind === 'change' ? [event] : []));
    expect(changes.map(({ what }) => what)).toEqual([...Array<string>(14).fill('prune'), 'quantize', 'quantize']);
    expect(changes.at(-1)).toMatchObject({ done: 2, total: 2, path: 'model.layers.1.mlp.up_proj' });
    expect(await zerosOf(model, 'model.layers.0.self_attn.q_proj')).toBe(0.5);
    expect(model.sites('up_proj')[0]!.weight!.kind).toBe('codebook4');
    expect(adapter!.sites.size).toBe(14);
    model.dispose();
  });

  it.each<[string, Partial<Recipe>, string]>([
    ['gptq under an adapter', { quantize: { kind: 'gptq', bits: 4, groupSize: 16 }, dropout: 0.1 }, 'adapter_model.safetensors'],
    ['a pruned model that trains whole', { prune: { kind: 'wanda', sparsity: 0.5 }, adapt: 'none' }, 'model/model.safetensors'],
  ])('goes on where it was stopped, to the same bits: %s', async (_, more, result) => {
    const before = memory().numTensors;
    const asked = { ...more, ...looking };
    const [stopped, whole] = [memoryFolder(), memoryFolder()];
    const controller = new AbortController();
    const onEvent = (event: RecipeEvent): void => void (event.kind === 'step' && event.step === 2 && controller.abort());
    await expect(run(asked, { folder: stopped, signal: controller.signal, onEvent })).rejects.toThrow(AbortError);
    (await run(asked, { folder: stopped, resume: true })).model.dispose();
    (await run(asked, { folder: whole })).model.dispose();
    const bytes = async (folder: typeof whole): Promise<Uint8Array | undefined> =>
      result.split('/').length === 1 ? folder.read(result) : folder.inside('model').read('model.safetensors');
    expect(await bytes(whole)).toBeDefined();
    expect(await bytes(stopped)).toEqual(await bytes(whole));
    expect(memory().numTensors).toBe(before);
  });

  it.each<[string, Partial<Recipe>, RegExp, Partial<RecipeKit>]>([
    [
      'text',
      {},
      /base\[0\]\.calibration was [0-9a-f]{16}, is [0-9a-f]{16}\n  help: Prune and quantize as before/,
      { readText: async (path) => (path === 'others.txt' ? 'Another lantern by another gate.' : files[path]!) },
    ],
    ['sparsity', { prune: { kind: 'wanda', sparsity: 0.25 } }, /: base\[0\]\.options\.sparsity was 0\.5, is 0\.25\n/, {}],
    ['matrices', { prune: { kind: 'wanda', at: 'up_proj' } }, /: base\[0\]\.at was all-linear, is up_proj\n/, {}],
    ['quantizer', { quantize: { kind: 'rtn', groupSize: 16 } }, /base\[1\] was absent, is \{"kind":"rtn".*"groupSize":16/, {}],
    ['scale of the adapter', { alpha: 3 }, /: adapters\.default\.alpha was 8, is 3\n/, {}],
    ['rate', { learningRate: 1e-3 }, /: schedule\.learningRate was 0\.0002, is 0\.001\n  help: Rates belong to a run/, {}],
    ['decay', { weightDecay: 0.1 }, /: optimizer\.parts\[2\]\.weightDecay was 0\.01, is 0\.1\n/, {}],
    ['bound', { clip: 2 }, /: optimizer\.parts\[0\]\.maxNorm was 1, is 2\n/, {}],
  ])('does not go on with another %s, and says what it was', async (_, other, message, otherKit) => {
    const folder = memoryFolder();
    const asked: Partial<Recipe> = { prune: 'wanda', ...looking };
    const controller = new AbortController();
    const onEvent = (event: RecipeEvent): void => void (event.kind === 'step' && controller.abort());
    await expect(run(asked, { folder, signal: controller.signal, onEvent })).rejects.toThrow(AbortError);
    const again = runRecipe(recipe({ ...asked, ...other }), { kit: { ...kit, ...otherKit }, folder, resume: true });
    await expect(again).rejects.toThrow(/belongs to another run/);
    await expect(again).rejects.toThrow(message);
    (await run(asked, { folder, resume: true })).model.dispose();
  });

  it('keeps the zeros of a pruned model that trains whole', async () => {
    const { model } = await run({ prune: { kind: 'wanda', sparsity: 0.5 }, adapt: 'none', ...looking });
    expect(await zerosOf(model, 'model.layers.1.mlp.down_proj')).toBe(0.5);
    model.dispose();
  });

  it.each<[Record<string, unknown>, RegExp]>([
    [{ prune: 'wanda' }, /wanda chooses by what its inputs look like, and the recipe names no text in calibrate/],
    [{ quantize: { kind: 'gptq', groupSize: 16 } }, /gptq chooses by/],
    [{ quantize: { kind: 'nf4', blockSize: 32 }, calibrate: 'others.txt' }, /no step that looks at it/],
    [{ calibrateWindows: 3 }, /no step that looks at it/],
    [{ prune: 'wandb', ...looking }, /prune: there is no 'wandb'[^]*Did you mean 'wanda'/],
    [{ prune: { kind: 'dsnot', initial: 'wandb' }, ...looking }, /dsnot: initial: there is no 'wandb'/],
    [{ prune: { kind: 'wanda', sparsity: 1 }, ...looking }, /sparsity must be/],
    [{ prune: 'wanda', quantize: { kind: 'gptq', groupSize: 16 }, ...looking }, /gptq/],
    [{ prune: 'magnitude', quantize: { kind: 'rtn', groupSize: 24 } }, /24/],
    [{ prune: 'wanda', ...looking, calibrateContext: 65 }, /context must be a whole number from 1 to the model's 64/],
    [{ prune: 'magnitude', at: 'q_prj' }, /q_prj/],
  ])('%j is refused before anything changes', async (more, message) => {
    const before = memory().numTensors;
    const events: RecipeEvent[] = [];
    const asked = run(more, { onEvent: (event) => events.push(event) });
    await expect(asked).rejects.toThrow(message);
    expect(events.filter(({ kind }) => kind === 'change')).toEqual([]);
    expect(memory().numTensors).toBe(before);
  });

  it('text that is not there is said before anything changes', async () => {
    await expect(run({ prune: 'wanda', calibrate: 'nowhere.txt' })).rejects.toThrow(/no nowhere\.txt/);
    expect(() => recipe({ calibrateWindows: 0 })).toThrow(ConfigError);
  });
});
