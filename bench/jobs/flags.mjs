/** A flag that cannot be: the message alone is told. */
export class FlagError extends Error {}

/** The whole numbers above 0 that flags of these names hold. */
export const counts = (values, names) =>
  names.map((name) => {
    const count = Number(values[name]);
    if (!(Number.isSafeInteger(count) && count > 0)) throw new FlagError(`--${name}: expected a whole number above 0, got ${values[name]}`);
    return count;
  });

/** The value of a flag that is one of a few words. */
export function oneOf(values, name, words) {
  if (words.includes(values[name])) return values[name];
  throw new FlagError(`--${name}: expected ${words.join(', ')}, got ${values[name]}`);
}
