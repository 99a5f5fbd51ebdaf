import { recomputes, type Recompute } from '@niwaki/engine';
import { ConfigError, unknownName, type Json } from '@niwaki/tensor';
import * as v from 'valibot';

/** A function of the caller's, by the name it is handed over under at run time. */
export interface Bound {
  readonly function: string;
}

/** A factory by its kind alone, or with options of its own. */
export type Factory = string | { readonly kind: string; readonly [option: string]: Json };

/** A run as data: what a person saves, shares, compares, and hands to `runRecipe` or `niwaki finetune --recipe`. */
export interface Recipe {
  /** A folder, a .gguf, a .safetensors, a known name, a hub id or a URL. */
  readonly model: string;
  /** A .jsonl or text file. */
  readonly data?: string;
  /** How a plain text becomes documents; default 'whole'. */
  readonly split?: 'whole' | 'blank-line';
  /** Several documents in a row, masked apart; default true. */
  readonly pack?: boolean;
  /** Cut documents that are longer than the context; default: an error for chats, split for plain text. */
  readonly truncate?: boolean;
  /** A JSON file of exact batches, instead of data. */
  readonly batches?: string;

  /** Before everything else. */
  readonly prune?: Factory;
  /** After pruning, before the adapter. */
  readonly quantize?: Factory;
  /** A .jsonl or text file that calibrated methods of `prune` and `quantize` look at. */
  readonly calibrate?: string;
  /** Windows of it, at even distances over the file; default 32. */
  readonly calibrateWindows?: number;
  /** Tokens of a window; default 256, or the model's context where that is less. */
  readonly calibrateContext?: number;
  /** Default 'lora'; 'none' trains every parameter. */
  readonly adapt?: Factory;
  /** Where the adapter goes; default 'all-linear'. */
  readonly at?: string | readonly string[] | Bound;
  readonly rank?: number;
  readonly alpha?: number;
  readonly dropout?: number;
  /** A saved adapter to start from, instead of a new one. */
  readonly initAdapter?: string;

  /** Default 'causalLM'. */
  readonly objective?: Factory | Bound;
  /** Default 'adamw'. */
  readonly optimizer?: Factory | Bound;
  /** Default 2e-4. */
  readonly learningRate?: number;
  readonly weightDecay?: number;
  /** Default 'constant'. */
  readonly schedule?: Factory | Bound;
  /** Steps of warm-up; below 1, that part of the run. */
  readonly warmup?: number;
  /** Bound of the gradient's norm; 0 = off; default 1. */
  readonly clip?: number;

  readonly steps?: number;
  readonly epochs?: number;
  /** Default 1. */
  readonly batchSize?: number;
  /** Tokens of a row; default 512, or the model's own where that is less. */
  readonly context?: number;
  /** Default 1. */
  readonly accumulate?: number;
  /** Bytes of tensors on the device: what the model leaves free of it buys speed; default: the least memory. */
  readonly memoryBudget?: number;
  /** What the backward pass of a block computes again, in place of `memoryBudget`; default 'full', the least memory. */
  readonly recompute?: Recompute;
  readonly seed?: number;
  /** A text file whose loss is reported every `evaluateEvery` steps (default 100). */
  readonly evaluate?: string;
  readonly evaluateEvery?: number;
  /** Default 100. */
  readonly checkpointEvery?: number;
  /** Checkpoints kept; default 2. */
  readonly keep?: number;

  readonly device?: 'auto' | 'cpu' | 'wasm' | 'webgpu';
  readonly threads?: number;
  /** Folder of the results. */
  readonly out?: string;
  /** Write the pruned or quantized model beside the adapter too, in its own format; default false: it is made again when it is needed. */
  readonly saveBase?: boolean;
}
export type RecipeName = keyof Recipe;

/** What makes the stored matrices that an adapter stands on. */
export const baseNames = ['model', 'prune', 'quantize', 'calibrate', 'calibrateWindows', 'calibrateContext', 'seed'] as const;
export type BaseOfRecipe = Pick<Recipe, (typeof baseNames)[number]>;

const positive = v.pipe(v.number(), v.integer('expected a whole number'), v.minValue(1, 'expected at least 1'));
const natural = v.pipe(v.number(), v.integer('expected a whole number'), v.minValue(0, 'expected at least 0'));
const nonNegative = v.pipe(v.number(), v.finite('expected a finite number'), v.minValue(0, 'expected at least 0'));
const rate = v.pipe(v.number(), v.finite('expected a finite number'), v.gtValue(0, 'expected more than 0'));
const name = v.pipe(v.string(), v.nonEmpty('expected a name'));
const bound = v.strictObject({ function: name });
const factory = v.union([name, v.looseObject({ kind: name })], 'expected a kind or an object with one');
const factoryOrBound = v.union([name, v.looseObject({ kind: name }), bound], 'expected a kind, an object with one, or { function }');

const shape: { readonly [key in RecipeName]-?: v.GenericSchema } = {
  model: name,
  data: v.optional(name),
  split: v.optional(v.picklist(['whole', 'blank-line'])),
  pack: v.optional(v.boolean()),
  truncate: v.optional(v.boolean()),
  batches: v.optional(name),
  prune: v.optional(factory),
  quantize: v.optional(factory),
  calibrate: v.optional(name),
  calibrateWindows: v.optional(positive),
  calibrateContext: v.optional(positive),
  adapt: v.optional(factory),
  at: v.optional(
    v.union(
      [name, v.pipe(v.array(name), v.minLength(1, 'expected a pattern or a list of them')), bound],
      'expected a pattern or a list of them',
    ),
  ),
  rank: v.optional(positive),
  alpha: v.optional(rate),
  dropout: v.optional(v.pipe(v.number(), v.minValue(0, 'expected at least 0'), v.ltValue(1, 'expected less than 1'))),
  initAdapter: v.optional(name),
  objective: v.optional(factoryOrBound),
  optimizer: v.optional(factoryOrBound),
  learningRate: v.optional(rate),
  weightDecay: v.optional(nonNegative),
  schedule: v.optional(factoryOrBound),
  warmup: v.optional(nonNegative),
  clip: v.optional(nonNegative),
  steps: v.optional(positive),
  epochs: v.optional(positive),
  batchSize: v.optional(positive),
  context: v.optional(v.pipe(positive, v.minValue(2, 'expected at least 2'))),
  accumulate: v.optional(positive),
  memoryBudget: v.optional(positive),
  recompute: v.optional(v.picklist(recomputes)),
  seed: v.optional(natural),
  evaluate: v.optional(name),
  evaluateEvery: v.optional(positive),
  checkpointEvery: v.optional(positive),
  keep: v.optional(positive),
  device: v.optional(v.picklist(['auto', 'cpu', 'wasm', 'webgpu'])),
  threads: v.optional(positive),
  out: v.optional(name),
  saveBase: v.optional(v.boolean()),
};

export const recipeNames: readonly RecipeName[] = Object.keys(shape) as RecipeName[];

/**
 * A recipe from JSON.
 * @param options `where` stands for the file in errors
 * @throws ConfigError naming the field, its value and what was expected; for an unknown key, the nearest known one
 */
export function parseRecipe(json: unknown, { where = 'recipe' }: { where?: string } = {}): Recipe {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new ConfigError(`${where}: expected an object`, { where });
  const unknown = Object.keys(json).find((key) => !Object.hasOwn(shape, key));
  if (unknown !== undefined) throw unknownName(`${where}: there is no`, unknown, recipeNames);
  const parsed = v.safeParse(v.strictObject(shape), json);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    const key = v.getDotPath(issue) ?? 'recipe';
    throw new ConfigError(`${where}: ${key}: ${reason(issue)}, got ${JSON.stringify(issue.input)}`, { where, key, given: issue.input });
  }
  const recipe = parsed.output as unknown as Recipe;
  const bad = contradiction(recipe);
  if (bad !== undefined) throw new ConfigError(`${where}: ${bad}`, { where });
  return recipe;
}

/** A union's own message says nothing; that of the alternative that came furthest does. */
function reason(issue: v.BaseIssue<unknown>): string {
  return issue.message.replace(/^Invalid \w+: E/, 'e').replace(/ but received .*$/, '');
}

function contradiction(recipe: Recipe): string | undefined {
  if (recipe.data !== undefined && recipe.batches !== undefined) return 'give data or batches, not both';
  if (recipe.steps !== undefined && recipe.epochs !== undefined) return 'give steps or epochs, not both';
  if (recipe.memoryBudget !== undefined && recipe.recompute !== undefined) return 'give memoryBudget or recompute, not both';
  if (recipe.saveBase && kindOf(recipe.adapt ?? 'lora').kind === 'none' && recipe.initAdapter === undefined)
    return 'saveBase is for an adapter; without one the whole model is saved';
  if (recipe.saveBase && recipe.prune === undefined && recipe.quantize === undefined)
    return 'saveBase saves what was pruned or quantized, and nothing is';
  return undefined;
}

/** The factory's kind and its options as plain JSON. */
export function kindOf(value: Factory): { kind: string; options: Record<string, Json> } {
  if (typeof value === 'string') return { kind: value, options: {} };
  const { kind, ...options } = value;
  return { kind, options: options as Record<string, Json> };
}
