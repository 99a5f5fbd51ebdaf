import { ConfigError, refuse } from '@niwaki/tensor';
import { check, disposeBatch, isCalibrated, validateSites, type Method, type MethodProgress } from '@niwaki/engine';
import type { AdapterMethod } from '@niwaki/peft';
import type { Loaded } from '@niwaki/hub';
import { siteParty, type AdapterSet, type Model, type Selector, type Site, type TokenBatch } from '@niwaki/nn';
import { calibrationWindows } from '../data/calibration-windows.ts';
import { warnOfOtherBase } from './base-record.ts';
import { factoryOf, functionOf, isBound, pick, type Functions } from './factories.ts';
import type { KitOptions, Placing, RecipeKit } from './kit.ts';
import { kindOf, type BaseOfRecipe, type Factory, type Recipe } from './recipe.ts';

interface Preparing {
  readonly signal?: AbortSignal;
  readonly adapter: Placed<AdapterMethod> | undefined;
  /** What the file in `calibrate` holds. */
  readonly text: string | undefined;
  warn(message: string): void;
  onChange(change: MatrixChange): void;
  /** The stored matrices are what the adapter will stand on; not called where none will. */
  onBase?(): Promise<void>;
}

/** A matrix was pruned or quantized. */
export interface MatrixChange extends MethodProgress {
  readonly kind: 'change';
  readonly what: 'prune' | 'quantize';
}

/** A method and where it goes. */
interface Placed<M extends Method> {
  readonly method: M;
  readonly at: Selector;
}

/** What a recipe does to the stored matrices, made before a model is loaded. */
export interface Steps {
  readonly pruner: Placed<Method> | undefined;
  readonly quantizer: Placed<Method> | undefined;
}

/** @throws ConfigError for an unknown kind or its options, and where calibration text is missing or nothing reads it */
export function stepsOf(recipe: BaseOfRecipe, kit: RecipeKit): Steps {
  const steps = { pruner: placed('prune', recipe.prune, kit.prune), quantizer: placed('quantize', recipe.quantize, kit.quantize) };
  const { calibrate, calibrateWindows, calibrateContext } = recipe;
  const looking = [steps.pruner, steps.quantizer].find((step) => step !== undefined && isCalibrated(step.method));
  if (looking !== undefined && calibrate === undefined) {
    const { kind } = looking.method;
    throw new ConfigError(`recipe: ${kind} chooses by what its inputs look like, and the recipe names no text in calibrate`, {
      kind,
      help: 'Name a .jsonl or a text file in calibrate: a few thousand tokens of text like what the model will see.',
    });
  }
  if (looking === undefined && (calibrate ?? calibrateWindows ?? calibrateContext) !== undefined) {
    throw new ConfigError('recipe: there is calibration text, and no step that looks at it', {
      calibrate,
      calibrateWindows,
      calibrateContext,
      help: 'Leave calibrate and its windows away, or prune or quantize with a method that is calibrated.',
    });
  }
  return steps;
}

function placed(
  what: 'prune' | 'quantize',
  value: Factory | undefined,
  factories: Readonly<Record<string, (options: KitOptions) => Method>>,
): Placed<Method> | undefined {
  if (value === undefined) return undefined;
  const { kind, options } = kindOf(value);
  const { at = 'all-linear', ...rest } = options;
  return { method: factoryOf(what, kind, factories)(rest), at: at as Selector };
}

/** Prunes, quantizes, then puts on what trains. Everything that can be checked is, before the first matrix changes. */
export async function prepareModel(
  recipe: Recipe,
  kit: RecipeKit,
  loaded: Loaded,
  steps: Steps,
  { adapter, warn, onChange, onBase, text, ...stop }: Preparing,
): Promise<AdapterSet | undefined> {
  const { model } = loaded;
  const seed = recipe.seed ?? 0;
  validate(model, steps, adapter);
  await changeMatrices(recipe, kit, loaded, steps, { seed, onChange, text, ...stop });
  if (adapter !== undefined || recipe.initAdapter !== undefined) await onBase?.();
  if (recipe.initAdapter !== undefined) {
    await warnOfOtherBase(model, kit.folder(recipe.initAdapter), warn);
    const set = await kit.loadAdapter(model, recipe.initAdapter, { trainable: true, onWarning: ({ message }) => warn(message), ...stop });
    agree(set, adapterOptions(recipe), recipe.initAdapter);
    return set;
  }
  if (adapter === undefined) {
    trainAll(model);
    return undefined;
  }
  return kit.adaptModel(model, adapter.method, { at: adapter.at, seed, ...stop });
}

/** Prunes, then quantizes, as the recipe says. */
export async function changeMatrices(
  recipe: BaseOfRecipe,
  kit: RecipeKit,
  loaded: Loaded,
  { pruner, quantizer }: Steps,
  { onChange, text, ...placing }: Pick<Preparing, 'signal' | 'onChange' | 'text'> & { readonly seed: number },
): Promise<void> {
  const { model } = loaded;
  const batches = calibrationOf(recipe, loaded, text);
  const placingOf = (what: MatrixChange['what'], { method, at }: Placed<Method>): Placing => ({
    at,
    ...placing,
    onProgress: (progress) => onChange({ kind: 'change', what, ...progress }),
    ...(isCalibrated(method) && { calibrate: { batches } }),
  });
  try {
    if (pruner !== undefined) await kit.pruneModel(model, pruner.method, placingOf('prune', pruner));
    if (quantizer !== undefined) await kit.quantizeModel(model, quantizer.method, placingOf('quantize', quantizer));
  } finally {
    batches.forEach(disposeBatch);
  }
}

/** The windows of a recipe's text, the caller's to dispose; none without a text. */
export function calibrationOf(recipe: BaseOfRecipe, { model, tokenizer }: Loaded, text: string | undefined): readonly TokenBatch[] {
  const { calibrate: name, calibrateWindows: windows, calibrateContext: context } = recipe;
  if (text === undefined) return [];
  return calibrationWindows(text, tokenizer, model.info, {
    name: name!,
    ...(windows !== undefined && { windows }),
    ...(context !== undefined && { context }),
  });
}

/** Those of the adapter that a recipe has fields of its own for. */
const adapterOptions = (recipe: Recipe): KitOptions => ({ ...pick(recipe, 'rank'), ...pick(recipe, 'alpha'), ...pick(recipe, 'dropout') });

/** A new adapter, made before a model is loaded; undefined where a saved one goes on, or none trains. */
export function adapterOf(recipe: Recipe, kit: RecipeKit, functions: Functions): Placed<AdapterMethod> | undefined {
  if (recipe.initAdapter !== undefined) return undefined;
  const { kind, options } = kindOf(recipe.adapt ?? 'lora');
  if (kind === 'none') return undefined;
  const { at: placed, ...rest } = options;
  const where = recipe.at ?? (placed as Recipe['at']) ?? 'all-linear';
  const at = isBound(where) ? functionOf<Selector>(where, functions) : where;
  return { method: factoryOf('adapt', kind, kit.adapt)({ ...adapterOptions(recipe), ...rest }), at };
}

/** Hours of quantizing are lost where what follows has no place on codes: every site is asked for all of its methods first. */
function validate(model: Model, { pruner, quantizer }: Steps, adapter: Placed<AdapterMethod> | undefined): void {
  const methods = new Map<Site, Method[]>();
  for (const { method, at } of [pruner, quantizer, adapter].filter((step) => step !== undefined)) {
    const sites = model.sites(at, { points: method.points });
    for (const site of sites) methods.set(site, [...(methods.get(site) ?? []), method]);
    if (method !== adapter?.method) validateSites(method, sites, model);
  }
  for (const [site, inOrder] of methods) {
    if (site.weight !== undefined) refuse(check({ sites: [siteParty(site)], methods: inOrder }), { path: site.path });
  }
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

/** Entries that train, and all. */
export function countTrainable(model: Model): { trainable: number; parameters: number } {
  const sizes = [...new Set(model.parameters().values())].map(({ shape, trainable }) => ({
    trainable,
    size: shape.reduce((a, b) => a * b, 1),
  }));
  const sum = (list: typeof sizes): number => list.reduce((total, { size }) => total + size, 0);
  return { trainable: sum(sizes.filter(({ trainable }) => trainable)), parameters: sum(sizes) };
}
