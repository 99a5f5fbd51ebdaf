import { ConfigError } from './errors.ts';
import { editDistance, nearest } from './nearest.ts';
import { outOfRange } from './out-of-range.ts';

type NameOf<O> = O extends unknown ? keyof O & string : never;
/** The list itself where it holds every name, else a type that says which one it lacks. */
type Whole<O, N extends readonly string[]> = [Exclude<NameOf<O>, N[number]>] extends [never]
  ? N
  : { readonly missing: Exclude<NameOf<O>, N[number]> };

/**
 * Refuses options that a factory does not have: a name misspelled would otherwise be a default without a word.
 * The compiler holds the list to the type: a name that is no option, or an option that is not in it, does not compile.
 * @param what the factory: 'lora'
 * @param names all of its options. A factory that hands some on lists those of the inner one too: [...adamNames, 'learningRate']
 * @throws ConfigError that names the factory, the unknown name, the nearest known one, and all of them
 * @example checkOptions('nf4', options, ['blockSize', 'doubleQuant']);
 */
export function checkOptions<O extends object, const N extends readonly NameOf<O>[]>(
  what: string,
  options: O,
  names: N & Whole<O, N>,
): void {
  const known: readonly string[] = names;
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw outOfRange(what, 'options', options, `an object with some of ${known.join(', ')}`);
  }
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown !== undefined) throw unknownName(`${what}: there is no option`, unknown, known);
}

/**
 * The error of a name that is none of those there are.
 * @param sentence what comes before the name: 'lora: there is no option'
 */
export const unknownName = (sentence: string, name: string, known: readonly string[]): ConfigError =>
  new ConfigError(`${sentence} '${name}'`, { name, ...namesInstead(name, known) });

/** What an error says to somebody whose name is not known: the nearest one, if it is near, and all of them. */
export function namesInstead(
  name: string,
  known: readonly string[],
): { readonly known: readonly string[]; readonly nearest?: string; readonly help: string } {
  const [near] = nearest(name, known, { count: 1 });
  const all = known.length === 0 ? 'There is none.' : `Known: ${known.join(', ')}.`;
  // Farther than that it is no slip of the keyboard, and a guess would mislead.
  if (near === undefined || editDistance(name, near) > Math.max(name.length, near.length) / 2) return { known, help: all };
  return { known, nearest: near, help: `Did you mean '${near}'? ${all}` };
}
