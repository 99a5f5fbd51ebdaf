import { describe, expect, it } from 'vitest';
import {
  activateAdapters,
  adamw,
  adapt,
  blockwiseBackprop,
  calibrationFolder,
  calibrationWindows,
  causalLM,
  ConfigError,
  evaluateBatch,
  evaluateText,
  forward,
  fullTapeBackprop,
  generate,
  init,
  initializeModel,
  languageData,
  load,
  loadAdapter,
  loadResult,
  loadTokenizer,
  lora,
  magnitude,
  measureSpeed,
  memoryFolder,
  mergeAdapter,
  mergeAndUnload,
  nf4,
  packSamples,
  prune,
  quantize,
  runRecipe,
  saveAdapter,
  saveModel,
  saveQuantized,
  StateError,
  swapAdapter,
  tokenizeDocuments,
  train,
  unmergeAdapter,
  wanda,
  type Model,
} from '../src/index.ts';
import { bytesOf, onTiny } from '../../testing/src/contract-model.ts';
import { tinyLlamaConfig } from '../../testing/src/tiny-llama.ts';

// What TypeScript refuses and plain JavaScript lets through: told by name, and the model is as it was.

const data = { hash: 'none', plan: () => ({ stepsPerEpoch: 1, window: async () => ({ batches: [], tokens: 0 }) }) };
const optimizer = adamw({ learningRate: 1e-3 });

/** Whatever a verb gives: a value, a promise, events. */
async function outcome(call: () => unknown): Promise<void> {
  const made = await call();
  if (typeof made === 'object' && made !== null && Symbol.asyncIterator in made) for await (const _ of made as AsyncIterable<unknown>);
}

/** A call as plain JavaScript writes it. */
// oxlint-disable-next-line typescript/no-explicit-any
type Wrong = (model: any) => unknown;
// oxlint-disable-next-line typescript/no-explicit-any
const js = <F extends (...given: any[]) => unknown>(verb: F): ((...given: unknown[]) => unknown) => verb as never;

const misused: readonly (readonly [string, Wrong, string])[] = [
  [
    'quantize by a name',
    (model) => js(quantize)(model, 'nf4'),
    "quantize: method must be a method, as nf4() or wanda() gives it, got 'nf4'",
  ],
  ['quantize by a factory', (model) => js(quantize)(model, nf4), 'got the function nf4, which has to be called'],
  [
    'quantize what load gives',
    (model) => js(quantize)({ model, config: {} }, nf4()),
    'quantize: model must be a model, as load() gives it',
  ],
  ['quantize nothing', () => js(quantize)(), 'quantize: model must be a model, as load() gives it, got nothing'],
  [
    'quantize a number',
    (model) => js(quantize)(model, nf4(), { at: 3 }),
    "quantize: at must be paths, patterns, 'all-linear' or a predicate",
  ],
  ['quantize at a bare pattern', (model) => js(quantize)(model, nf4(), 'q_proj'), 'quantize: options must be an object'],
  ['prune without a method', (model) => js(prune)(model), 'prune: method must be a method'],
  ['adapt without at', (model) => js(adapt)(model, lora()), "adapt: at must be paths, patterns, 'all-linear' or a predicate, got nothing"],
  ['adapt by a name', (model) => js(adapt)(model, 'lora', { at: 'all-linear' }), 'adapt: method must be a method of adapters'],
  ['adapt by a quantizer', (model) => js(adapt)(model, nf4(), { at: 'all-linear' }), 'adapt: method must be a method of adapters'],
  [
    'train without a model',
    () => js(train)({ data, optimizer }),
    'train: model must be a model, as load() gives it, got an object with data, optimizer',
  ],
  ['train nothing', () => js(train)({}), 'train: model must be'],
  ['train without options', (model) => js(train)(model), 'train: options must be an object'],
  ['train without data', (model) => js(train)(model, { optimizer }), 'train: data must be training data'],
  [
    'train by a factory',
    (model) => js(train)(model, { data, optimizer: adamw }),
    'train: optimizer must be an optimizer, as adamw() gives it',
  ],
  [
    'train with one participant',
    (model) => js(train)(model, { data, optimizer, participants: { name: 'lisa' } }),
    'participants must be a list',
  ],
  ['merge with options in place of names', (model) => js(mergeAdapter)(model, { into: 'dense' }), 'mergeAdapter: names must be'],
  ['generate from text', (model) => js(generate)(model, 'Once'), 'generate: promptIds must be a list of token ids'],
  ['evaluate without a text', (model) => js(evaluateText)(model, {}), 'evaluateText: text must be text, got nothing'],
  ['evaluate without an objective', (model) => js(evaluateBatch)(model, {}), 'evaluateBatch: objective must be an objective'],
  ['save what is no set', (model) => js(saveAdapter)(model, './adapter'), 'saveAdapter: set must be a set of adapters'],
  ['activate one name', (model) => js(activateAdapters)(model, 'default'), 'activateAdapters: names must be a list'],
  ['load nothing', () => js(load)(), 'a model is loaded from a path'],
];

/** Each verb with one option that it does not have. */
const verbs: Readonly<Record<string, (model: Model, options: never) => unknown>> = {
  quantize: (model, options) => quantize(model, nf4(), options),
  prune: (model, options) => prune(model, magnitude(), options),
  adapt: (model, options) => adapt(model, lora(), { at: 'all-linear', ...(options as object) }),
  train: (model, options) => train(model, { data, optimizer, ...(options as object) }),
  'train: evaluate': (model, options) => train(model, { data, optimizer, evaluate: options }),
  'train: checkpoint': (model, options) => train(model, { data, optimizer, checkpoint: options }),
  calibrate: (model, options) => prune(model, wanda(), { calibrate: options }),
  mergeAdapter: (model, options) => mergeAdapter(model, 'default', options),
  unmergeAdapter: (model, options) => unmergeAdapter(model, 'default', options),
  mergeAndUnload: (model, options) => mergeAndUnload(model, 'default', options),
  activateAdapters: (model, options) => activateAdapters(model, [], options),
  saveAdapter: (_, options) => js(saveAdapter)({ sites: new Map(), replaced: new Map() }, memoryFolder(), options),
  loadAdapter: (model, options) => loadAdapter(model, './none', options),
  swapAdapter: (model, options) => swapAdapter(model, 'default', './none', options),
  generate: (model, options) => generate(model, [1], options),
  forward: (model, options) => forward(model, {}, options),
  evaluateText: (model, options) => evaluateText(model, undefined, 'text', options),
  evaluateBatch: (model, options) => evaluateBatch(model, {}, causalLM(), options),
  load: (_, options) => load('./none', options),
  loadTokenizer: (_, options) => loadTokenizer('./none', options),
  saveModel: (model, options) => saveModel(model, './none', options),
  saveQuantized: (model, options) => saveQuantized(model, './none', options),
  initializeModel: (_, options) => initializeModel(tinyLlamaConfig, { seed: 1, ...(options as object) }),
  init: (_, options) => init(options),
  packSamples: (_, options) => packSamples([], options),
  languageData: (_, options) => languageData([], options),
  tokenizeDocuments: (_, options) => tokenizeDocuments([], undefined, options),
  calibrationWindows: (model, options) => calibrationWindows('text', undefined, model.info, options),
  calibrationFolder: (_, options) => calibrationFolder(memoryFolder(), options),
  measureSpeed: (_, options) => measureSpeed(options),
  blockwiseBackprop: (_, options) => blockwiseBackprop(options),
  fullTapeBackprop: (_, options) => fullTapeBackprop(options),
  runRecipe: (_, options) => runRecipe({ model: 'none' }, options),
  loadResult: (_, options) => loadResult(memoryFolder(), options),
};

/** Refused with that, and nothing of the model changed. */
const expectRefused = (call: Wrong, said: string): Promise<void> =>
  onTiny(async (model) => {
    const before = await bytesOf(model.parameters().values());
    const error = await outcome(() => call(model)).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).message).toContain(said);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    expect([...model.adapters.keys()]).toEqual([]);
  });

describe('misuse that plain JavaScript lets through', () => {
  it.each(misused)('%s', (_, call, said) => expectRefused(call, said));
});

describe('an option that a verb does not have', () => {
  it.each(Object.entries(verbs))('%s', (verb, call) =>
    expectRefused((model) => call(model, { sgnal: 1 } as never), `${verb}: there is no option 'sgnal'`),
  );

  it('is refused in a recipe that is run, not parsed', () =>
    expectRefused(
      () => js(runRecipe)({ model: 'none', learnigRate: 1 }),
      "recipe: there is no 'learnigRate'\n  help: Did you mean 'learningRate'?",
    ));

  it.each([
    ['adapt', { kind: 'lora', rnk: 3 }, "lora: there is no option 'rnk'\n  help: Did you mean 'rank'?"],
    ['quantize', { kind: 'gptq', bit: 3 }, "gptq: there is no option 'bit'\n  help: Did you mean 'bits'?"],
    ['prune', { kind: 'dsnot', initial: { kind: 'wanda', sparsty: 0.5 } }, "wanda: there is no option 'sparsty'"],
    ['optimizer', { kind: 'aged-adamw', beta3: 0.9 }, "agedAdamw: there is no option 'beta3'"],
    ['optimizer', { kind: 'agedAdamw', beta3: 0.9 }, "agedAdamw: there is no option 'beta3'"],
    ['schedule', { kind: 'cosine', flor: 0.1 }, "cosine: there is no option 'flor'\n  help: Did you mean 'floor'?"],
    ['objective', { kind: 'causalLM', mean: true }, "causalLM: there is no option 'mean'"],
  ])('is refused in a factory of a recipe, %s: %j', (field, value, said) =>
    expectRefused(() => js(runRecipe)({ model: 'niwaki-tiny', data: './none', [field]: value }), said),
  );
});

it('a model that was disposed says so', async () => {
  const model = await initializeModel(tinyLlamaConfig, { seed: 1 });
  model.dispose();
  for (const call of [
    () => train(model, { data, optimizer }),
    () => quantize(model, nf4()),
    () => adapt(model, lora(), { at: 'all-linear' }),
    () => generate(model, [1]),
  ]) {
    await expect(outcome(call)).rejects.toThrow(StateError);
    await expect(outcome(call)).rejects.toThrow('the model was disposed');
  }
});
