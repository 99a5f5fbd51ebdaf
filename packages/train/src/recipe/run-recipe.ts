import { checkOptions, type Json } from '@niwaki/tensor';
import type { Objective } from '@niwaki/engine';
import type { Tokenizer } from '@niwaki/hub';
import type { AdapterSet, Model } from '@niwaki/nn';
import type { Schedule, Transform } from '@niwaki/optim';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import type { TrainEvent } from '../loop/events.ts';
import { train, type TrainOptions } from '../loop/train.ts';
import { keepBase, type BaseRecord } from './base-record.ts';
import { make, pick, type Functions } from './factories.ts';
import type { RecipeKit } from './kit.ts';
import { adapterOf, countTrainable, prepareModel, stepsOf, type MatrixChange } from './prepare-model.ts';
import { describe, evaluation, readData } from './recipe-data.ts';
import { parseRecipe, type Recipe } from './recipe.ts';
import { openRunLog } from './run-log.ts';
import { saveResult } from './save-result.ts';

export type RecipeEvent =
  | TrainEvent
  | { readonly kind: 'device'; readonly device: string; readonly reason: string; readonly description?: string }
  | { readonly kind: 'load'; readonly loaded: number; readonly total: number; readonly name: string }
  | { readonly kind: 'warning'; readonly message: string }
  | MatrixChange
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
 * `checkpoints/`, and at the end the adapter in PEFT form (or the whole model, in `model/`). Beside an adapter `base.json` says
 * what it stands on, for `loadResult`; with `saveBase` the pruned or quantized model is in `base/` before training begins.
 */
export async function runRecipe(given: Recipe, kit: RecipeKit, options: RunRecipeOptions = {}): Promise<RecipeResult> {
  checkOptions('runRecipe', options, ['onEvent', 'signal', 'resume', 'functions', 'folder']);
  const recipe = parseRecipe(given);
  const {
    onEvent = () => {},
    signal,
    resume = false,
    functions = {},
    folder = recipe.out === undefined ? undefined : kit.folder(recipe.out),
  } = options;
  const stop = signal === undefined ? {} : { signal };
  const loss = makeLoss(recipe, kit, functions);
  const changes = stepsOf(recipe, kit);
  const planned = adapterOf(recipe, kit, functions);
  const text = recipe.calibrate === undefined ? undefined : await kit.readText(recipe.calibrate);
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
    let base: BaseRecord | undefined;
    const adapter = await prepareModel(recipe, kit, loaded, changes, {
      adapter: planned,
      text,
      warn,
      onChange: onEvent,
      ...(folder && {
        onBase: async () => {
          base = await keepBase(recipe, kit, loaded, { folder, resume, ...stop });
        },
      }),
      ...stop,
    });
    onEvent({ kind: 'ready', ...countTrainable(model), ...('rows' in data ? describe(data) : {}) });
    const log = folder && openRunLog(folder, recipe);
    let steps = 0;
    let last: number | undefined;
    const run = train(model, {
      ...loss,
      data,
      ...pick(recipe, 'steps'),
      ...pick(recipe, 'epochs'),
      ...pick(recipe, 'batchSize'),
      ...pick(recipe, 'accumulate'),
      ...pick(recipe, 'memoryBudget'),
      ...pick(recipe, 'recompute'),
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
    if (folder !== undefined) await saveResult(kit, folder, { model, adapter, tokenizer, base });
    return { model, ...(tokenizer && { tokenizer }), ...(adapter && { adapter }), steps, ...(last !== undefined && { loss: last }) };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

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
