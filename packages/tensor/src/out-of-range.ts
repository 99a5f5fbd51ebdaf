import { ConfigError } from './errors.ts';

/**
 * The error of an option that is not what it may be.
 * @param what the factory: 'lora'
 * @param expected as it goes on after 'must be': 'a whole number of at least 1'
 */
export const outOfRange = (what: string, field: string, given: unknown, expected: string): ConfigError =>
  new ConfigError(`${what}: ${field} must be ${expected}, got ${shown(given)}`, { field, given, expected });

/** @throws ConfigError where it is no whole number, or less than the least */
export function checkCount(what: string, field: string, given: unknown, least: number = 1): void {
  if (Number.isInteger(given) && (given as number) >= least) return;
  throw outOfRange(what, field, given, `a whole number of at least ${least}`);
}

/** @throws ConfigError where it is none of these */
export function checkOneOf(what: string, field: string, given: unknown, allowed: readonly unknown[]): void {
  if (allowed.includes(given)) return;
  throw outOfRange(what, field, given, `one of ${allowed.map(shown).join(', ')}`);
}

/** @throws ConfigError where it is neither true nor false */
export function checkFlag(what: string, field: string, given: unknown): void {
  if (typeof given === 'boolean') return;
  throw outOfRange(what, field, given, 'true or false');
}

function shown(value: unknown): string {
  if (typeof value === 'string') return `'${value}'`;
  return typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value);
}
