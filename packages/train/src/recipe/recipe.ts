import { ConfigError, nearest, type Json } from '@niwaki/tensor';
import * as v from 'valibot';

const positive = v.pipe(v.number(), v.integer('expected a whole number'), v.minValue(1, 'expected at least 1'));
const natural = v.pipe(v.number(), v.integer('expected a whole number'), v.minValue(0, 'expected at least 0'));
const nonNegative = v.pipe(v.number(), v.finite('expected a finite number'), v.minValue(0, 'expected at least 0'));
const rate = v.pipe(v.number(), v.finite('expected a finite number'), v.gtValue(0, 'expected more than 0'));
const name = v.pipe(v.string(), v.nonEmpty('expected a name'));

/** A function of the caller's, by the name it is handed over under at run time. */
const bound = v.strictObject({ function: name });
/** A factory by its kind alone, or with options of its own. */
const factory = v.union([name, v.looseObject({ kind: name })]);
const places = v.union([name, v.pipe(v.array(name), v.minLength(1)), bound]);

const shape = {
  /** A folder, a .gguf, a .safetensors, a known name, a hub id or a URL. */
  model: name,
  /** A .jsonl or text file. */
  data: v.optional(name),
  /** How a plain text becomes documents; default 'whole'. */
  split: v.optional(v.picklist(['whole', 'blank-line'])),
  /** Several documents in a row, masked apart; default true. */
  pack: v.optional(v.boolean()),
  /** Cut documents that are longer than the context; default: an error for chats, split for plain text. */
  truncate: v.optional(v.boolean()),
  /** A JSON file of exact batches, instead of data. */
  batches: v.optional(name),

  quantize: v.optional(factory),
  /** Default 'lora'; 'none' trains every parameter. */
  adapt: v.optional(factory),
  /** Where the adapter goes; default 'all-linear'. */
  at: v.optional(places),
  rank: v.optional(positive),
  alpha: v.optional(rate),
  dropout: v.optional(v.pipe(v.number(), v.minValue(0, 'expected at least 0'), v.ltValue(1, 'expected less than 1'))),
  /** A saved adapter to start from, instead of a new one. */
  initAdapter: v.optional(name),

  objective: v.optional(v.union([factory, bound])),
  optimizer: v.optional(v.union([factory, bound])),
  learningRate: v.optional(rate),
  weightDecay: v.optional(nonNegative),
  schedule: v.optional(v.union([factory, bound])),
  /** Steps of warm-up; below 1, that part of the run. */
  warmup: v.optional(nonNegative),
  /** Bound of the gradient's norm; 0 = off. */
  clip: v.optional(nonNegative),

  steps: v.optional(positive),
  epochs: v.optional(positive),
  batchSize: v.optional(positive),
  context: v.optional(v.pipe(positive, v.minValue(2, 'expected at least 2'))),
  accumulate: v.optional(positive),
  seed: v.optional(natural),
  /** A text file whose loss is reported every `evaluateEvery` steps. */
  evaluate: v.optional(name),
  evaluateEvery: v.optional(positive),
  checkpointEvery: v.optional(positive),
  /** Checkpoints kept; default 2. */
  keep: v.optional(positive),

  device: v.optional(v.picklist(['auto', 'cpu', 'wasm', 'webgpu'])),
  threads: v.optional(positive),
  /** Folder of the results. */
  out: v.optional(name),
} as const;

const schema = v.strictObject(shape);

/** A run as data: what a person saves, shares, compares, and hands to `runRecipe` or `niwaki finetune --recipe`. */
export type Recipe = v.InferOutput<typeof schema>;
export type RecipeName = keyof Recipe;
export type Factory = v.InferOutput<typeof factory>;
/** A function named in a recipe and given at run time. */
export type Bound = v.InferOutput<typeof bound>;

export const recipeNames: readonly RecipeName[] = Object.keys(shape) as RecipeName[];

/**
 * A recipe from JSON.
 * @param options `where` stands for the file in errors
 * @throws ConfigError naming the field, its value and what was expected; for an unknown key, the nearest known one
 */
export function parseRecipe(json: unknown, { where = 'recipe' }: { where?: string } = {}): Recipe {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new ConfigError(`${where}: expected an object`, { where });
  const unknown = Object.keys(json).find((key) => !Object.hasOwn(shape, key));
  if (unknown !== undefined) {
    const [near] = nearest(unknown, recipeNames, { count: 1 });
    throw new ConfigError(`${where}: there is no '${unknown}'`, { where, key: unknown, nearest: near, help: `Did you mean '${near}'?` });
  }
  const parsed = v.safeParse(schema, json);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    const key = v.getDotPath(issue) ?? 'recipe';
    throw new ConfigError(`${where}: ${key}: ${reason(issue)}, got ${JSON.stringify(issue.input)}`, { where, key, given: issue.input });
  }
  const recipe = parsed.output;
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
  if (recipe.initAdapter !== undefined) {
    const given = (['adapt', 'rank', 'alpha', 'dropout', 'at'] as const).find((key) => key !== 'dropout' && recipe[key] !== undefined);
    if (given !== undefined) return `initAdapter brings its own '${given}'`;
  }
  return undefined;
}

/** The factory's kind and its options as plain JSON. */
export function kindOf(value: Factory): { kind: string; options: Record<string, Json> } {
  if (typeof value === 'string') return { kind: value, options: {} };
  const { kind, ...options } = value;
  return { kind, options: options as Record<string, Json> };
}
