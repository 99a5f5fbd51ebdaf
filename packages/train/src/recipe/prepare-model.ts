import { ConfigError } from '@niwaki/tensor';
import type { AdapterSet, Model, Selector } from '@niwaki/nn';
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

/** Entries that train, and all. */
export function countTrainable(model: Model): { trainable: number; parameters: number } {
  const sizes = [...new Set(model.parameters().values())].map(({ shape, trainable }) => ({
    trainable,
    size: shape.reduce((a, b) => a * b, 1),
  }));
  const sum = (list: typeof sizes): number => list.reduce((total, { size }) => total + size, 0);
  return { trainable: sum(sizes.filter(({ trainable }) => trainable)), parameters: sum(sizes) };
}
