import { ConfigError, nearest, type Json } from '@niwaki/tensor';
import type { Objective } from '@niwaki/engine';
import { memorySink, type FolderSink, type Loaded, type Tokenizer } from '@niwaki/hub';
import type { AdapterSet, Model, Selector } from '@niwaki/nn';
import type { Schedule, Transform } from '@niwaki/optim';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import { parseDocuments } from '../data/document.ts';
import { exactBatches } from '../data/exact-batches.ts';
import { languageData, type LanguageData } from '../data/language-data.ts';
import { packSamples } from '../data/pack.ts';
import { tokenizeDocuments } from '../data/tokenize.ts';
import type { TrainData } from '../data/train-data.ts';
import { evaluateText } from '../evaluate/evaluate-text.ts';
import type { TrainEvent } from '../loop/events.ts';
import { train, type TrainOptions } from '../loop/train.ts';
import type { KitOptions, RecipeKit } from './kit.ts';
import { kindOf, type Bound, type Factory, type Recipe } from './recipe.ts';
import { openRunLog } from './run-log.ts';

export type RecipeEvent =
  | TrainEvent
  | { readonly kind: 'device'; readonly device: string; readonly reason: string; readonly description?: string }
  | { readonly kind: 'load'; readonly loaded: number; readonly total: number; readonly name: string }
  | { readonly kind: 'warning'; readonly message: string }
  /** Everything is in place; training begins. */
  | {
      readonly kind: 'ready';
      /** Entries that train, of how many the model has. */
      readonly trainable: number;
      readonly parameters: number;
      readonly rows?: number;
      readonly tokens?: number;
      readonly targets?: number;
      /** Documents with nothing left to learn. */
      readonly dropped?: number;
    };

export interface RunRecipeOptions {
  readonly onEvent?: (event: RecipeEvent) => void;
  /** After it fires the run writes a checkpoint (where it has a folder) and throws AbortError. */
  readonly signal?: AbortSignal;
  /** Go on from the newest checkpoint in the recipe's folder; default false. */
  readonly resume?: boolean;
  /** What `{ "function": name }` in the recipe stands for. */
  readonly functions?: Readonly<Record<string, unknown>>;
  /** Default: the folder the recipe names in `out`. */
  readonly folder?: RunFolder;
}

export interface RecipeResult {
  readonly model: Model;
  readonly tokenizer?: Tokenizer;
  /** The trained adapter; absent where the whole model was trained. */
  readonly adapter?: AdapterSet;
  /** Steps of the run. */
  readonly steps: number;
  /** Of the last step of this process; undefined where a finished run was resumed. */
  readonly loss?: number;
}

/**
 * Runs a recipe from loading to saving. Where it has a folder, that gets `recipe.json`, `run.jsonl` (a line a step),
 * `checkpoints/`, and at the end the adapter in PEFT form (or the whole model, in `model/`).
 */
export async function runRecipe(recipe: Recipe, kit: RecipeKit, options: RunRecipeOptions = {}): Promise<RecipeResult> {
  const {
    onEvent = () => {},
    signal,
    resume = false,
    functions = {},
    folder = recipe.out === undefined ? undefined : kit.folder(recipe.out),
  } = options;
  const stop = signal === undefined ? {} : { signal };
  const loss = makeLoss(recipe, kit, functions);
  const { device, reason, description } = await kit.init({ ...pick(recipe, 'device'), ...pick(recipe, 'threads') });
  onEvent({ kind: 'device', device, reason, ...(description !== undefined && { description }) });
  const loaded = await kit.load(recipe.model, { ...stop, onProgress: (progress) => onEvent({ kind: 'load', ...progress }) });
  const { model, tokenizer } = loaded;
  try {
    const warn = (message: string): void => onEvent({ kind: 'warning', message });
    loaded.warnings.forEach(warn);
    const unused = (['batchSize', 'accumulate', 'context', 'pack', 'split', 'truncate'] as const).filter(
      (name) => recipe.batches !== undefined && recipe[name] !== undefined,
    );
    if (unused.length > 0)
      warn(`batches are taken as they are: ${unused.join(', ')} of the recipe ${unused.length > 1 ? 'have' : 'has'} no effect`);
    const data = await readData(recipe, kit, loaded);
    const adapter = await prepareModel(recipe, kit, model, { functions, warn, ...stop });
    onEvent({ kind: 'ready', ...countTrainable(model), ...('rows' in data ? describe(data) : {}) });
    const log = folder && (await openRunLog(folder, recipe));
    let steps = 0;
    let last: number | undefined;
    const run = train(model, {
      ...loss,
      data,
      ...pick(recipe, 'steps'),
      ...pick(recipe, 'epochs'),
      ...pick(recipe, 'batchSize'),
      ...pick(recipe, 'accumulate'),
      ...pick(recipe, 'seed'),
      clip: recipe.clip ?? 1,
      ...stop,
      recipe: recipe as unknown as Json,
      ...(await evaluation(recipe, kit, loaded)),
      ...(folder && {
        checkpoint: { folder: folder.inside('checkpoints'), resume, ...pick(recipe, 'keep'), every: recipe.checkpointEvery ?? 100 },
      }),
    });
    for await (const event of run) {
      if (event.kind === 'resume') await log?.resume(event.step);
      if (event.kind === 'step') {
        await log?.step(event);
        last = event.loss;
      }
      if (event.kind !== 'evaluation') steps = event.step;
      onEvent(event);
    }
    if (folder !== undefined) await saveResult(kit, folder, { model, adapter, tokenizer });
    return { model, ...(tokenizer && { tokenizer }), ...(adapter && { adapter }), steps, ...(last !== undefined && { loss: last }) };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

type Stop = { readonly signal?: AbortSignal };
type Functions = Readonly<Record<string, unknown>>;

function makeLoss(recipe: Recipe, kit: RecipeKit, functions: Functions): Pick<TrainOptions, 'objective' | 'optimizer' | 'schedule'> {
  const learningRate = recipe.learningRate ?? 2e-4;
  const optimizer = recipe.optimizer ?? 'adamw';
  const schedule = recipe.schedule ?? 'constant';
  const rates = { learningRate, ...(recipe.warmup !== undefined && { warmup: recipe.warmup }) };
  const decay = recipe.weightDecay === undefined ? {} : { weightDecay: recipe.weightDecay };
  return {
    optimizer: make<Transform>('optimizer', optimizer, kit.optimizers, functions, { learningRate, ...decay }),
    schedule: make<Schedule>('schedule', schedule, kit.schedules, functions, rates),
    objective: make<Objective>('objective', recipe.objective ?? 'causalLM', kit.objectives, functions, {}),
  };
}

/** A thing of a recipe: made by its factory, or the caller's own. */
function make<T>(
  what: string,
  value: Factory | Bound,
  factories: Readonly<Record<string, (options: KitOptions) => T>>,
  functions: Functions,
  more: KitOptions,
): T {
  if (isBound(value)) return functionOf<T>(value, functions);
  const { kind, options } = kindOf(value);
  return factoryOf(what, kind, factories)({ ...more, ...options });
}

const isBound = (value: unknown): value is Bound => typeof value === 'object' && value !== null && 'function' in value;

function functionOf<T>({ function: name }: Bound, functions: Functions): T {
  const found = functions[name];
  if (found !== undefined) return found as T;
  throw new ConfigError(`the recipe asks for the function '${name}', which was not handed over`, {
    name,
    given: Object.keys(functions),
    help: `Pass functions: { ${name}: … } to runRecipe.`,
  });
}

function factoryOf<T>(what: string, kind: string, factories: Readonly<Record<string, T>>): T {
  if (Object.hasOwn(factories, kind)) return factories[kind]!;
  const known = Object.keys(factories);
  throw new ConfigError(`recipe: ${what}: there is no '${kind}'`, {
    what,
    kind,
    known,
    help: `Did you mean '${nearest(kind, known, { count: 1 })[0]}'? Known: ${known.join(', ')}.`,
  });
}

async function readData(
  recipe: Recipe,
  kit: RecipeKit,
  { model, tokenizer }: Loaded,
): Promise<TrainData | (LanguageData & { dropped: number })> {
  const { vocabularySize, contextLength } = model.info;
  if (recipe.batches !== undefined)
    return exactBatches(JSON.parse(await kit.readText(recipe.batches)), { vocabularySize, name: recipe.batches });
  if (recipe.data === undefined)
    throw new ConfigError('the recipe has neither data nor batches', { help: 'Name a .jsonl or a text file in data.' });
  if (tokenizer === undefined)
    throw new ConfigError(`the model '${recipe.model}' came without a tokenizer, so text cannot be read`, { model: recipe.model });
  const context = recipe.context ?? Math.min(512, contextLength);
  if (context > contextLength)
    throw new ConfigError(`context ${context} is more than the model's ${contextLength}`, { context, contextLength });
  const text = await kit.readText(recipe.data);
  const documents = parseDocuments(text, { name: recipe.data, ...pick(recipe, 'split') });
  const samples = tokenizeDocuments(documents, tokenizer);
  const { rows, dropped } = packSamples(samples, {
    context,
    ...pick(recipe, 'pack'),
    ...(recipe.truncate && { long: 'truncate' as const }),
  });
  return { ...languageData(rows, { vocabularySize }), dropped };
}

const describe = (data: LanguageData & { dropped?: number }): { rows: number; tokens: number; targets: number; dropped: number } => ({
  rows: data.rows.length,
  tokens: data.tokens,
  targets: data.targets,
  dropped: data.dropped ?? 0,
});

interface Preparing extends Stop {
  readonly functions: Functions;
  warn(message: string): void;
}

/** Quantizes, then puts on what trains. */
async function prepareModel(
  recipe: Recipe,
  kit: RecipeKit,
  model: Model,
  { functions, warn, ...stop }: Preparing,
): Promise<AdapterSet | undefined> {
  const seed = recipe.seed ?? 0;
  if (recipe.quantize !== undefined) {
    const { kind, options } = kindOf(recipe.quantize);
    const { at = 'all-linear', ...rest } = options;
    await factoryOf('quantize', kind, kit.quantize)(model, rest, { at: at as Selector, seed, ...stop });
  }
  const given = { ...pick(recipe, 'rank'), ...pick(recipe, 'alpha'), ...pick(recipe, 'dropout') };
  if (recipe.initAdapter !== undefined) {
    const set = await kit.loadAdapter(model, recipe.initAdapter, { trainable: true, onWarning: ({ message }) => warn(message), ...stop });
    agree(set, given, recipe.initAdapter);
    return set;
  }
  const { kind, options } = kindOf(recipe.adapt ?? 'lora');
  if (kind === 'none') {
    trainAll(model);
    return undefined;
  }
  const { at: placed, ...rest } = options;
  const where = recipe.at ?? (placed as Recipe['at']) ?? 'all-linear';
  const at = isBound(where) ? functionOf<Selector>(where, functions) : where;
  return factoryOf('adapt', kind, kit.adapt)(model, { ...given, ...rest }, { at, seed, ...stop });
}

/** A loaded adapter has its own options; the recipe may repeat them, not change them. */
function agree({ method }: AdapterSet, given: KitOptions, source: string): void {
  const own = method.options as KitOptions;
  const other = Object.keys(given).find((name) => own[name] !== given[name]);
  if (other === undefined) return;
  throw new ConfigError(`the adapter in ${source} has ${other} ${String(own[other])}, the recipe says ${String(given[other])}`, {
    option: other,
    adapter: own[other],
    recipe: given[other],
    help: `Leave ${other} out: an adapter keeps its own.`,
  });
}

const floatRoles: ReadonlySet<string> = new Set(['matrix', 'embedding', 'head', 'norm', 'bias']);
/** Everything that is stored as floats trains; packed weights stay as they are. */
function trainAll(model: Model): void {
  for (const parameter of model.parameters().values()) parameter.trainable = floatRoles.has(parameter.role);
}

function countTrainable(model: Model): { trainable: number; parameters: number } {
  const sizes = [...new Set(model.parameters().values())].map(({ shape, trainable }) => ({
    trainable,
    size: shape.reduce((a, b) => a * b, 1),
  }));
  const sum = (list: typeof sizes): number => list.reduce((total, { size }) => total + size, 0);
  return { trainable: sum(sizes.filter(({ trainable }) => trainable)), parameters: sum(sizes) };
}

async function evaluation(recipe: Recipe, kit: RecipeKit, { model, tokenizer }: Loaded): Promise<Pick<TrainOptions, 'evaluate'>> {
  if (recipe.evaluate === undefined) return {};
  if (tokenizer === undefined)
    throw new ConfigError(`the model '${recipe.model}' came without a tokenizer, so no text can be evaluated`, { model: recipe.model });
  const text = await kit.readText(recipe.evaluate);
  const context = recipe.context ?? Math.min(512, model.info.contextLength);
  const run = async (signal: AbortSignal | undefined): Promise<Record<string, number>> => ({
    ...(await evaluateText(model, tokenizer, text, { context, ...(signal && { signal }) })),
  });
  return { evaluate: { every: recipe.evaluateEvery ?? 100, run } };
}

async function saveResult(kit: RecipeKit, folder: RunFolder, { model, adapter, tokenizer }: Trained): Promise<void> {
  if (adapter === undefined) await kit.saveModel(model, sinkInto(folder.inside('model')), tokenizer === undefined ? {} : { tokenizer });
  else await kit.saveAdapter(adapter, sinkInto(folder));
}

interface Trained {
  readonly model: Model;
  readonly adapter: AdapterSet | undefined;
  readonly tokenizer: Tokenizer | undefined;
}

/** Files are collected in memory and written whole. */
const sinkInto = (folder: RunFolder): FolderSink => ({
  name: folder.name,
  create: async (file) => {
    const sink = memorySink({ name: file });
    return { ...sink, commit: () => folder.write(file, sink.bytes()) };
  },
});

/** One option, where it is given. */
function pick<K extends keyof Recipe>(recipe: Recipe, name: K): { [P in K]?: NonNullable<Recipe[P]> } {
  return recipe[name] === undefined ? {} : ({ [name]: recipe[name] } as { [P in K]?: NonNullable<Recipe[P]> });
}
