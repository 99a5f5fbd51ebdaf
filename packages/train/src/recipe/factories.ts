import { ConfigError, nearest } from '@niwaki/tensor';
import type { KitOptions } from './kit.ts';
import { kindOf, type Bound, type Factory, type Recipe } from './recipe.ts';

export type Functions = Readonly<Record<string, unknown>>;

/** A thing of a recipe: made by its factory, or the caller's own. */
export function make<T>(
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

export const isBound = (value: unknown): value is Bound => typeof value === 'object' && value !== null && 'function' in value;

export function functionOf<T>({ function: name }: Bound, functions: Functions): T {
  if (Object.hasOwn(functions, name) && functions[name] !== undefined) return functions[name] as T;
  throw new ConfigError(`the recipe asks for the function '${name}', which was not handed over`, {
    name,
    given: Object.keys(functions),
    help: `Pass functions: { ${name}: … } to runRecipe.`,
  });
}

export function factoryOf<T>(what: string, kind: string, factories: Readonly<Record<string, T>>): T {
  if (Object.hasOwn(factories, kind)) return factories[kind]!;
  const known = Object.keys(factories);
  throw new ConfigError(`recipe: ${what}: there is no '${kind}'`, {
    what,
    kind,
    known,
    help: `Did you mean '${nearest(kind, known, { count: 1 })[0]}'? Known: ${known.join(', ')}.`,
  });
}

/** One option, where it is given. */
export function pick<K extends keyof Recipe>(recipe: Recipe, name: K): { [P in K]?: NonNullable<Recipe[P]> } {
  return recipe[name] === undefined ? {} : ({ [name]: recipe[name] } as { [P in K]?: NonNullable<Recipe[P]> });
}
