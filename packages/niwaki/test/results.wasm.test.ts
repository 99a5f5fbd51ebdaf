import { byteTokenizer, byteVocabularySize, tinyLlama } from '../../testing/src/index.ts';
import { beforeEach, describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { readBase } from '@niwaki/train';
import {
  ConfigError,
  evaluateText,
  filesFolder,
  FormatError,
  load,
  loadAdapter,
  loadResult,
  memoryFolder,
  NotFoundError,
  parseRecipe,
  runRecipe,
  type EvaluationEvent,
  type Folder,
  type Loaded,
  type LoadResultEvent,
  type Recipe,
  type RecipeEvent,
  type RecipeKit,
  type RunFolder,
} from '../src/index.ts';

const texts: Record<string, string> = {
  'notes.txt': 'The gardener trims the pine. The pine grows slowly.',
  'others.txt': 'Moss covers the stones by the gate, and a lantern stands where the path turns.',
  'held-out.txt': 'A crane stands by the pond. The gardener rests.',
};
let files: Record<string, string>;
/** What was loaded. */
let loads: string[];
/** Folders by the path that a test gives for one. */
const saved = new Map<string, Folder>();
const kit: Partial<RecipeKit> = {
  init: async () => ({ device: 'test', reason: 'as it is' }),
  load: async (source): Promise<Loaded> => {
    loads.push(typeof source === 'string' ? source : source.name);
    if (typeof source !== 'string') {
      const { model, config } = await load(source);
      return { model, tokenizer: byteTokenizer(), config, warnings: [] };
    }
    if (saved.has(source)) return kit.load!(saved.get(source)!, {});
    const model = await tinyLlama({ vocab_size: byteVocabularySize }, { trainable: false, seed: source === 'tiny' ? 1 : 2 });
    return { model, tokenizer: byteTokenizer(), config: model.info.config as Loaded['config'], warnings: [] };
  },
  readText: async (path) => files[path] ?? Promise.reject(new NotFoundError(`no file '${path}' that can be read`)),
};
const looking = { calibrate: 'others.txt', calibrateWindows: 3, calibrateContext: 12 } as const;

beforeEach(() => {
  files = { ...texts };
  loads = [];
});

/** A run in a folder, and how well it predicts another text at its end. */
async function trained(more: Partial<Recipe>): Promise<{ folder: RunFolder; perplexity: number }> {
  const folder = memoryFolder();
  const evaluations: EvaluationEvent[] = [];
  const onEvent = (event: RecipeEvent): void => void (event.kind === 'evaluation' && evaluations.push(event));
  const recipe = parseRecipe({ model: 'tiny', data: 'notes.txt', evaluate: 'held-out.txt', context: 16, rank: 2, steps: 3, ...more });
  (await runRecipe(recipe, { kit, folder, onEvent })).model.dispose();
  loads = [];
  return { folder, perplexity: evaluations.at(-1)!.metrics['perplexity']! };
}

async function opened(folder: RunFolder, options: { model?: string } = {}): Promise<{ perplexity: number; events: LoadResultEvent[] }> {
  const events: LoadResultEvent[] = [];
  const { model, tokenizer, adapter } = await loadResult(folder, { kit, ...options, onEvent: (event) => events.push(event) });
  expect(model.active).toEqual([adapter.name]);
  const { perplexity } = await evaluateText(model, tokenizer!, texts['held-out.txt']!, { context: 16 });
  model.dispose();
  return { perplexity, events };
}
/** The files of a folder, for those who only read. */
async function filesIn(folder: RunFolder): Promise<Folder> {
  const found = new Map<string, Uint8Array>();
  for (const name of await folder.list()) {
    const bytes = await folder.read(name);
    if (bytes !== undefined) found.set(name, bytes);
  }
  return filesFolder(found);
}
const said = (events: readonly LoadResultEvent[]): string[] => events.flatMap((event) => (event.kind === 'warning' ? [event.message] : []));

const bases: readonly [string, Partial<Recipe>][] = [
  ['gptq in 4 bits', { quantize: { kind: 'gptq', bits: 4, groupSize: 16 }, ...looking }],
  ['awq, folded', { quantize: { kind: 'awq', groupSize: 16, fold: true }, ...looking }],
  ['nf4', { quantize: { kind: 'nf4', blockSize: 32 } }],
  ['wanda', { prune: { kind: 'wanda', sparsity: 0.5 }, ...looking }],
  ['magnitude, packed', { prune: { kind: 'magnitude', n: 2, m: 4, store: 'n-of-m' } }],
  [
    'dsnot, then nf4 of some',
    { prune: { kind: 'dsnot', initial: 'sparsegpt' }, quantize: { kind: 'nf4', blockSize: 32, at: 'up_proj' }, ...looking },
  ],
];

describe('the folder of a recipe', () => {
  it.each(bases)('gives the model as it was at the end of training, made again: %s', async (_, more) => {
    const before = memory().numTensors;
    const { folder, perplexity } = await trained(more);
    expect(await folder.list()).not.toContain('base');
    const again = await opened(folder);
    expect(again.perplexity).toBe(perplexity);
    expect(said(again.events)).toEqual([]);
    expect(again.events.some(({ kind }) => kind === 'change')).toBe(true);
    expect(loads).toEqual(['tiny']);
    expect(memory().numTensors).toBe(before);
  });

  it.each(bases)('gives it from what was saved beside, without the model and the text: %s', async (_, more) => {
    const before = memory().numTensors;
    const { folder, perplexity } = await trained({ ...more, saveBase: true });
    delete files['others.txt'];
    const again = await opened(folder);
    expect(again.perplexity).toBe(perplexity);
    expect(again.events.filter(({ kind }) => kind !== 'load')).toEqual([]);
    expect(loads).toEqual(['memory/base']);
    expect(memory().numTensors).toBe(before);
  });

  it('says what its adapter stands on, and nothing where nothing was changed', async () => {
    const { folder } = await trained({ quantize: { kind: 'rtn', bits: 8, groupSize: 16, at: ['q_proj', 'v_proj'] }, seed: 3 });
    const sixteen = /^[0-9a-f]{16}$/;
    expect(await readBase(folder)).toEqual({
      model: 'tiny',
      quantize: { kind: 'rtn', bits: 8, groupSize: 16, at: ['q_proj', 'v_proj'] },
      seed: 3,
      made: {
        changes: [{ kind: 'rtn', options: { bits: 8, groupSize: 16, symmetric: false, mse: false }, at: ['q_proj', 'v_proj'] }],
        form: expect.stringMatching(sixteen),
        sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
      },
    });
    const plain = await trained({});
    expect(await readBase(plain.folder)).toEqual({ model: 'tiny' });
    expect((await opened(plain.folder)).perplexity).toBe(plain.perplexity);
  });

  it('goes on from an adapter that a run left, on the same base', async () => {
    const { folder } = await trained({ quantize: { kind: 'nf4', blockSize: 32 } });
    const { model, adapter } = await loadResult(folder, { kit, trainable: true });
    expect([...adapter.sites.values()].flatMap(({ parameters }) => Object.values(parameters)).some(({ trainable }) => trainable)).toBe(
      true,
    );
    model.dispose();
  });

  it('takes the model from another place, and sees one that is changed already', async () => {
    const { folder, perplexity } = await trained({ quantize: { kind: 'nf4', blockSize: 32 }, saveBase: true });
    const base = await opened(folder, { model: 'tiny' });
    expect(base.perplexity).toBe(perplexity);
    expect(base.events.some(({ kind }) => kind === 'change')).toBe(true);
    saved.set('there', await filesIn(folder.inside('base')));
    const changed = await opened(folder, { model: 'there' });
    expect(changed.perplexity).toBe(perplexity);
    expect(changed.events.filter(({ kind }) => kind === 'change')).toEqual([]);
  });

  it('warns where the base made again is another one', async () => {
    const { folder } = await trained({ quantize: { kind: 'nf4', blockSize: 32 } });
    const { events } = await opened(folder, { model: 'another' });
    expect(said(events)).toEqual([
      'the base that was made again is not to the bit the one that the adapter was trained on: another device or another model rounds otherwise',
    ]);
  });

  it('says which option is another one since', async () => {
    const { folder } = await trained({ quantize: { kind: 'nf4', blockSize: 32 } });
    const bytes = (await folder.read('base.json'))!;
    const changed = new TextDecoder()
      .decode(bytes)
      .replace('"blockSize": 32,\n          "doubleQuant": true', '"blockSize": 32,\n          "doubleQuant": false')
      .replace(/"sha256": ".{4}/, '"sha256": "0000');
    await folder.write('base.json', new TextEncoder().encode(changed));
    expect(said((await opened(folder)).events)[0]).toMatch(/trained on: changes\[0\]\.options\.doubleQuant was false, is true$/);
  });

  it('refuses another calibration text before it changes anything, and says where a text is missing', async () => {
    const { folder } = await trained({ prune: 'wanda', ...looking });
    const before = memory().numTensors;
    files['others.txt'] = 'Another lantern by another gate, and nothing of the old text is left in it at all.';
    const events: LoadResultEvent[] = [];
    const loading = loadResult(folder, { kit, onEvent: (event) => events.push(event) });
    await expect(loading).rejects.toThrow(ConfigError);
    await expect(loading).rejects.toThrow(
      /'others\.txt' is not the text that the base was calibrated with: its hash was .*help: Put the text back/s,
    );
    expect(events.filter(({ kind }) => kind === 'change')).toEqual([]);
    delete files['others.txt'];
    await expect(loadResult(folder, { kit })).rejects.toThrow(/no file 'others\.txt'/);
    expect(memory().numTensors).toBe(before);
  });

  it.each<[string, Partial<Recipe>, string[]]>([
    ['the same base', { quantize: { kind: 'nf4', blockSize: 32 } }, []],
    [
      'another one',
      { quantize: { kind: 'nf4', blockSize: 64 } },
      ['the adapter in memory was trained on another base: changes[0].options.blockSize was 32, is 64'],
    ],
    ['none', {}, [expect.stringMatching(/another base: changes\[0\] was \{"kind":"nf4".*, is absent$/) as never]],
  ])('lets its adapter train on, and warns where it is not upon its base: %s', async (_, more, expected) => {
    const { folder } = await trained({ quantize: { kind: 'nf4', blockSize: 32 } });
    const adapter = await filesIn(folder);
    const warnings: string[] = [];
    const { model } = await runRecipe(
      parseRecipe({ model: 'tiny', data: 'notes.txt', context: 16, steps: 1, initAdapter: 'before', ...more }),
      {
        kit: { ...kit, folder: () => folder, loadAdapter: (onto, __, options) => loadAdapter(onto, adapter, options) },
        onEvent: (event) => void (event.kind === 'warning' && warnings.push(event.message)),
      },
    );
    expect(warnings).toEqual(expected);
    model.dispose();
  });

  it('has no base.json of an earlier run, nor one where the whole model trained', async () => {
    const { folder } = await trained({});
    const recipe = parseRecipe({ model: 'tiny', data: 'notes.txt', context: 16, steps: 1, adapt: 'none' });
    (await runRecipe(recipe, { kit, folder })).model.dispose();
    expect(await readBase(folder)).toBeUndefined();
    await expect(loadResult(folder, { kit })).rejects.toThrow(NotFoundError);
  });

  it.each<[string, Partial<Recipe>, RegExp]>([
    ['base', { quantize: { kind: 'nf4', blockSize: 64 } }, /base\[0\]\.options\.blockSize was 32, is 64/],
    ['rate', { learningRate: 1 }, /schedule\.learningRate was 0\.0002, is 1/],
  ])('is as it was after a resume with another %s is refused', async (_, other, message) => {
    const asked = { quantize: { kind: 'nf4', blockSize: 32 }, saveBase: true };
    const { folder, perplexity } = await trained(asked);
    const recipe = { model: 'tiny', data: 'notes.txt', evaluate: 'held-out.txt', context: 16, rank: 2, steps: 3, ...asked, ...other };
    await expect(runRecipe(parseRecipe(recipe), { kit, folder, resume: true })).rejects.toThrow(message);
    expect((await opened(folder)).perplexity).toBe(perplexity);
  });

  it.each<[string, Partial<Recipe>, RegExp]>([
    [
      'codes whose rows are no whole words',
      { quantize: { kind: 'rtn', bits: 3, groupSize: 16 } },
      /q_proj' is stored as affine, which no file holds/,
    ],
    [
      'factors that are not folded',
      { quantize: { kind: 'awq', groupSize: 16 }, ...looking },
      /is stored as affine, which no file holds[^]*fold: true/,
    ],
  ])('is not half saved where no file holds the base: %s', async (_, more, message) => {
    const folder = memoryFolder();
    const recipe = parseRecipe({ model: 'tiny', data: 'notes.txt', context: 16, rank: 2, steps: 1, saveBase: true, ...more });
    const before = memory().numTensors;
    await expect(runRecipe(recipe, { kit, folder })).rejects.toThrow(message);
    expect(memory().numTensors).toBe(before);
    expect(await folder.list()).toEqual([]);
  });

  it.each<[Partial<Recipe>, RegExp]>([
    [{ saveBase: true }, /saveBase saves what was pruned or quantized, and nothing is/],
    [{ saveBase: true, quantize: 'nf4', adapt: 'none' }, /saveBase is for an adapter/],
  ])('%j is refused', (more, message) => {
    expect(() => parseRecipe({ model: 'tiny', ...more })).toThrow(message);
  });

  it.each<[string, (record: object) => unknown, RegExp]>([
    ['no object', () => 7, /base\.json/],
    ['another version', (record) => ({ ...record, version: 2 }), /base\.json: version/],
    ['a folder elsewhere', (record) => ({ ...record, saved: '../..' }), /base\.json: saved/],
    ['a field that is none', (record) => ({ ...record, script: 'x' }), /base\.json: script/],
    ['more of a recipe than a base', (record) => ({ ...record, recipe: { model: 'tiny', steps: 3 } }), /recipe\.steps: not of a base/],
    ['no model', (record) => ({ ...record, recipe: {} }), /base\.json: model/],
    [
      'changes that are none',
      (record) => ({ ...record, made: { changes: [{ kind: 'nf4' }], form: 'a', sha256: 'b' } }),
      /made\.changes\.0\.options/,
    ],
  ])('is refused with %s', async (_, change, message) => {
    const folder = memoryFolder();
    const record = { version: 1, recipe: { model: 'tiny' }, made: { changes: [], form: 'a', sha256: 'b' }, saved: 'base' };
    await folder.write('base.json', new TextEncoder().encode(JSON.stringify(change(record))));
    await expect(loadResult(folder, { kit })).rejects.toThrow(message);
    await expect(loadResult(folder, { kit })).rejects.toThrow(FormatError);
    expect(loads).toEqual([]);
  });
});
