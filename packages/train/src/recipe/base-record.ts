import { ConfigError, contentHash, FormatError, type Json } from '@niwaki/tensor';
import { baseChanges, type BaseChange } from '@niwaki/engine';
import { parseJson, type Loaded } from '@niwaki/hub';
import type { Model } from '@niwaki/nn';
import { fingerprintOf, type Weight } from '@niwaki/weights';
import * as v from 'valibot';
import { newestState } from '../checkpoint/checkpoint.ts';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import { differencesBetween, inWords } from '../checkpoint/run-identity.ts';
import type { RecipeKit } from './kit.ts';
import { baseNames, parseRecipe, type BaseOfRecipe, type Recipe } from './recipe.ts';
import { sinkInto } from './sink-into.ts';

const file = 'base.json';
const savedIn = 'base';

/** What the adapter of a folder stands on: `base.json`. */
export interface BaseRecord extends BaseOfRecipe {
  /** Where the recipe changed stored matrices: what was done, with every option, and what came out. */
  readonly made?: MadeBase;
  /** Name of a folder beside, which holds the model as it was then. */
  readonly saved?: string;
}

export interface MadeBase {
  readonly changes: readonly BaseChange[];
  /** Hash of how each matrix is stored. */
  readonly form: string;
  /** SHA-256 of everything that the matrices store. */
  readonly sha256: string;
}

const text = v.pipe(v.string(), v.nonEmpty());
const patterns = v.union([v.string(), v.array(v.string())]);
const schema = v.strictObject({
  version: v.literal(1),
  recipe: v.record(v.string(), v.unknown()),
  made: v.optional(
    v.strictObject({
      changes: v.array(
        v.strictObject({
          kind: text,
          options: v.record(v.string(), v.unknown()),
          at: patterns,
          exclude: v.optional(patterns),
          from: v.optional(text),
          calibration: v.optional(text),
        }),
      ),
      form: text,
      sha256: text,
    }),
  ),
  // One folder beside, never a way out of this one.
  saved: v.optional(v.picklist([savedIn])),
});

/** The record of a folder; undefined where there is none. @throws FormatError naming the field */
export async function readBase(folder: RunFolder): Promise<BaseRecord | undefined> {
  const bytes = await folder.read(file);
  if (bytes === undefined) return undefined;
  const where = `${folder.name}/${file}`;
  const parsed = v.safeParse(schema, parseJson(bytes, where));
  if (!parsed.success) {
    const issue = parsed.issues[0];
    throw new FormatError(`${where}: ${v.getDotPath(issue) ?? 'the file'}: ${issue.message}`, { folder: folder.name });
  }
  const { recipe, made, saved } = parsed.output;
  const foreign = Object.keys(recipe).find((name) => !(baseNames as readonly string[]).includes(name));
  if (foreign !== undefined) throw new FormatError(`${where}: recipe.${foreign}: not of a base`, { folder: folder.name, field: foreign });
  try {
    const base: BaseOfRecipe = parseRecipe(recipe, { where });
    return { ...base, ...(made && { made: made as MadeBase }), ...(saved && { saved }) };
  } catch (error) {
    if (!ConfigError.isInstance(error)) throw error;
    throw new FormatError(error.message, { folder: folder.name, cause: error });
  }
}

export async function writeBase(folder: RunFolder, { made, saved, ...recipe }: BaseRecord): Promise<void> {
  const record = { version: 1, recipe, ...(made && { made }), ...(saved && { saved }) };
  await folder.write(file, new TextEncoder().encode(`${JSON.stringify(record, undefined, 2)}\n`));
}

export const removeBase = (folder: RunFolder): Promise<void> => folder.remove(file);

const baseOfRecipe = (recipe: BaseOfRecipe): BaseOfRecipe =>
  Object.fromEntries(baseNames.filter((name) => recipe[name] !== undefined).map((name) => [name, recipe[name]])) as unknown as BaseOfRecipe;

/**
 * What `base.json` will say once there is an adapter; the base itself is written at once where the recipe wants it: an adapter
 * may rewrite it, and a form that no file holds is better known before training.
 */
export async function keepBase(
  recipe: Recipe,
  kit: RecipeKit,
  { model, tokenizer }: Loaded,
  { folder, resume, ...stop }: { readonly folder: RunFolder; readonly resume: boolean; readonly signal?: AbortSignal },
): Promise<BaseRecord> {
  const made = await madeBase(model);
  const record: BaseRecord = { ...baseOfRecipe(recipe), ...(made && { made }), ...(recipe.saveBase && { saved: savedIn }) };
  if (record.saved === undefined || (await isKept(folder, record)) || (await willBeRefused(model, folder, resume))) return record;
  await removeBase(folder);
  await kit.saveStored(model, sinkInto(folder.inside(savedIn)), { ...(tokenizer && { tokenizer }), ...stop });
  return record;
}

async function isKept(folder: RunFolder, { saved, made }: BaseRecord): Promise<boolean> {
  const before = await readBase(folder);
  return before?.saved === saved && before?.made?.sha256 === made?.sha256 && before?.made?.form === made?.form;
}

/** Training will not begin: what is in the folder goes with the run that is there. */
async function willBeRefused(model: Model, folder: RunFolder, resume: boolean): Promise<boolean> {
  const state = await newestState(folder.inside('checkpoints'));
  if (state === undefined) return false;
  return resume ? differencesBetween(state.run.base, baseChanges(model), 'base').length > 0 : state.attempt < state.run.steps;
}

/** What was made of a model's matrices since it was loaded; undefined where nothing was. Reads the matrices back. */
async function madeBase(model: Model): Promise<MadeBase | undefined> {
  const changes = baseChanges(model);
  return changes.length === 0 ? undefined : { changes, form: formOf(model), sha256: await fingerprintOf(weightsOf(model)) };
}

/** Whether a model's matrices are those of a record, to the bit. They are read only where they are stored in the same way. */
export const isMade = async (model: Model, { form, sha256 }: MadeBase): Promise<boolean> =>
  formOf(model) === form && (await fingerprintOf(weightsOf(model))) === sha256;

/** Tells where an adapter's folder says that it was trained on another base than the model's. */
export async function warnOfOtherBase(model: Model, folder: RunFolder, warn: (message: string) => void): Promise<void> {
  const record = await readBase(folder);
  if (record === undefined) return;
  const { made } = record;
  if (made === undefined ? baseChanges(model).length === 0 : await isMade(model, made)) return;
  const different = differencesBetween(made?.changes ?? [], baseChanges(model), 'changes');
  const what = different.length === 0 ? 'its numbers are others' : different.map(inWords).join('; ');
  warn(`the adapter in ${folder.name} was trained on another base: ${what}`);
}

function formOf(model: Model): string {
  const hash = contentHash();
  for (const [path, { kind, options }] of weightsOf(model)) hash.text(`${path} ${kind} ${JSON.stringify(options)}`);
  // What is rounded on its way in stands beside the weights.
  hash.text(JSON.stringify((model.info.config['niwaki'] as Json | undefined) ?? {}));
  return hash.digest();
}

const weightsOf = (model: Model): ReadonlyMap<string, Weight> =>
  new Map(
    model.sites(() => true).flatMap(({ path, weight, tiedTo }) => (weight === undefined || tiedTo !== undefined ? [] : [[path, weight]])),
  );
