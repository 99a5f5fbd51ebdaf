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
 * field, the value and what it may be, and the good ones together are taken.
 * @example configContract<LisaOptions>('lisa', lisa, { active: { takes: 2, not: [0, 1.5] }, … });
 */
export function configContract<O extends object>(name: string, make: (options: O) => unknown, fields: FieldCases<O>): void {
  const good = Object.fromEntries(
    Object.entries<FieldCase<unknown>>(fields).flatMap(([field, { takes }]) => (takes === undefined ? [] : [[field, takes]])),
  ) as O;
  const rows = Object.entries<FieldCase<unknown>>(fields).flatMap(([field, { not }]) =>
    typeof not === 'string' ? [] : not.map((value) => [field, value] as const),
  );
  describe(`${name}, configured`, () => {
    it('takes what is in range', () => expect(() => make(good)).not.toThrow());

    it.each(rows)('refuses %s: %j', (field, value) => {
      let error: unknown;
      try {
        make({ ...good, [field]: value });
      } catch (thrown) {
        error = thrown;
      }
      expect(error).toBeInstanceOf(ConfigError);
      const { message, details } = error as ConfigError;
      const said = new RegExp(`${field} must be (.+), got (.+)`).exec(message);
      expect([message, said?.[2]]).toEqual([message, expect.stringContaining(shown(value))]);
      expect(Object.values(details)).toContainEqual(value);
    });
  });
}

/** As a message shows it, quotes and brackets apart. */
const shown = (value: unknown): string => (typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value));
