import { ConfigError, unknownName } from '@niwaki/tensor';
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
  // A kind may be spelled as its factory is: agedAdamw, qGalore.
  const spelled = [kind, kind.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)].find((name) => Object.hasOwn(factories, name));
  if (spelled !== undefined) return factories[spelled]!;
  throw unknownName(`recipe: ${what}: there is no`, kind, Object.keys(factories));
}

/** One option, where it is given. */
export function pick<K extends keyof Recipe>(recipe: Recipe, name: K): { [P in K]?: NonNullable<Recipe[P]> } {
  return recipe[name] === undefined ? {} : ({ [name]: recipe[name] } as { [P in K]?: NonNullable<Recipe[P]> });
}
