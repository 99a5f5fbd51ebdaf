import { describe, expect, it } from 'vitest';
import { ConfigError } from '@niwaki/tensor';

/** One option of a factory: a value that it takes, and values that it must not take. */
export interface FieldCase<T> {
  /** Absent where it goes with none of the others. */
  readonly takes?: T;
  /** Out of range, or of another type; or, of an option that takes anything its type does, the reason why none is listed. */
  readonly not: readonly unknown[] | string;
}

/** Every option of a factory: the compiler misses one that is not listed. */
export type FieldCases<O extends object> = { readonly [K in keyof Required<O>]: FieldCase<NonNullable<O[K]>> };

/**
 * The table of bad configurations of a factory: each value out of range is refused with an error that names the factory's
 * field, the value and what it may be; a name that is none of the fields is refused with the nearest one and all of them;
 * and the good ones together are taken.
 * @example configContract<LisaOptions>('lisa', lisa, { active: { takes: 2, not: [0, 1.5] }, … });
 */
export function configContract<O extends object>(name: string, make: (options: O) => unknown, fields: FieldCases<O>): void {
  rangeContract(name, make, fields);
  const good = taken(fields);
  describe(`${name}, misnamed`, () => {
    it.each(Object.keys(fields))('refuses a slip in %s, and offers the name', (field) => {
      const slip = field[0]! + field;
      const { message, details } = refusal(() => make({ ...good, [slip]: undefined }));
      expect(message).toContain(`: there is no option '${slip}'\n  help: Did you mean '${field}'? Known: `);
      expect(details).toMatchObject({ name: slip, nearest: field, known: expect.arrayContaining(Object.keys(fields)) });
    });

    it.each([
      ['a name', 'some'],
      ['a number', 8],
      ['a list', []],
      ['nothing', null],
    ])('refuses %s in place of options', (_, value) => {
      expect(refusal(() => make(value as never)).message).toMatch(/ must be .+, got /);
    });
  });
}

/** The ranges alone: of what is no object of options. */
export function rangeContract<O extends object>(name: string, make: (options: O) => unknown, fields: FieldCases<O>): void {
  const good = taken(fields);
  const rows = Object.entries<FieldCase<unknown>>(fields).flatMap(([field, { not }]) =>
    typeof not === 'string' ? [] : not.map((value) => [field, value] as const),
  );
  describe(`${name}, configured`, () => {
    it('takes what is in range', () => expect(() => make(good)).not.toThrow());

    it.each(rows)('refuses %s: %j', (field, value) => {
      const { message, details } = refusal(() => make({ ...good, [field]: value }));
      const said = new RegExp(`${field} must be (.+), got (.+)`).exec(message);
      expect([message, said?.[2]]).toEqual([message, expect.stringContaining(shown(value))]);
      expect(Object.values(details)).toContainEqual(value);
    });
  });
}

const taken = <O extends object>(fields: FieldCases<O>): O =>
  Object.fromEntries(
    Object.entries<FieldCase<unknown>>(fields).flatMap(([field, { takes }]) => (takes === undefined ? [] : [[field, takes]])),
  ) as O;

function refusal(make: () => unknown): ConfigError {
  let error: unknown;
  try {
    make();
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(ConfigError);
  return error as ConfigError;
}

/** As a message shows it, quotes and brackets apart. */
const shown = (value: unknown): string => (typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value));
