import { ConfigError, refuse } from '@niwaki/tensor';
import { check, type AdapterMethod, type Method } from '@niwaki/engine';
import { siteParty, type AdapterSet, type Model, type Selector } from '@niwaki/nn';
import { factoryOf, functionOf, isBound, pick, type Functions } from './factories.ts';
import type { KitOptions, RecipeKit } from './kit.ts';
import { kindOf, type Recipe } from './recipe.ts';

interface Preparing {
  readonly signal?: AbortSignal;
  readonly functions: Functions;
  warn(message: string): void;
}

/** Quantizes, then puts on what trains. */
export async function prepareModel(
  recipe: Recipe,
  kit: RecipeKit,
  model: Model,
  { functions, warn, ...stop }: Preparing,
): Promise<AdapterSet | undefined> {
  const seed = recipe.seed ?? 0;
  const given = { ...pick(recipe, 'rank'), ...pick(recipe, 'alpha'), ...pick(recipe, 'dropout') };
  const quantizer = quantizerOf(recipe, kit);
  const adapter = recipe.initAdapter === undefined ? adapterOf(recipe, kit, given, functions) : undefined;
  refuseTogether(model, quantizer, adapter);
  if (quantizer !== undefined) await kit.quantizeModel(model, quantizer.method, { at: quantizer.at, seed, ...stop });
  if (recipe.initAdapter !== undefined) {
    const set = await kit.loadAdapter(model, recipe.initAdapter, { trainable: true, onWarning: ({ message }) => warn(message), ...stop });
    agree(set, given, recipe.initAdapter);
    return set;
  }
  if (adapter === undefined) {
    trainAll(model);
    return undefined;
  }
  return kit.adaptModel(model, adapter.method, { at: adapter.at, seed, ...stop });
}

/** A method and where it goes. */
interface Placed<M extends Method> {
  readonly method: M;
  readonly at: Selector;
}

function quantizerOf(recipe: Recipe, kit: RecipeKit): Placed<Method> | undefined {
  if (recipe.quantize === undefined) return undefined;
  const { kind, options } = kindOf(recipe.quantize);
  const { at = 'all-linear', ...rest } = options;
  return { method: factoryOf('quantize', kind, kit.quantize)(rest), at: at as Selector };
}

function adapterOf(recipe: Recipe, kit: RecipeKit, given: KitOptions, functions: Functions): Placed<AdapterMethod> | undefined {
  const { kind, options } = kindOf(recipe.adapt ?? 'lora');
  if (kind === 'none') return undefined;
  const { at: placed, ...rest } = options;
  const where = recipe.at ?? (placed as Recipe['at']) ?? 'all-linear';
  const at = isBound(where) ? functionOf<Selector>(where, functions) : where;
  return { method: factoryOf('adapt', kind, kit.adapt)({ ...given, ...rest }), at };
}

/** Before anything is changed: hours of quantizing are lost where the adapter that follows has no place on codes. */
function refuseTogether(model: Model, quantizer: Placed<Method> | undefined, adapter: Placed<AdapterMethod> | undefined): void {
  if (adapter === undefined) return;
  const coded = quantizer === undefined ? [] : model.sites(quantizer.at);
  for (const site of model.sites(adapter.at, { points: adapter.method.points })) {
    if (site.weight === undefined) continue;
    const methods = [...(coded.includes(site) ? [quantizer!.method] : []), adapter.method];
    refuse(check({ sites: [siteParty(site)], methods }), { path: site.path });
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
