import { ConfigError } from '@niwaki/tensor';

/** Typed reading of a config.json: absent and null take the default, a wrong type is an error that names the field. */
export interface ConfigReader {
  raw(field: string): unknown;
  integer(field: string, fallback?: number, options?: { least?: number; most?: number }): number;
  /** Null switches the thing off; absent takes the fallback. */
  optionalInteger(field: string, fallback?: number): number | undefined;
  number(field: string, fallback?: number): number;
  flag(field: string, fallback: boolean): boolean;
  text(field: string, fallback?: string): string;
  numbers(field: string): readonly number[];
  fail(field: string, problem: string): never;
}

export function configReader(config: Readonly<Record<string, unknown>>, where: string): ConfigReader {
  const fail = (field: string, problem: string): never => {
    throw new ConfigError(`${where} config: ${field} ${problem}`, { field, value: config[field], where });
  };
  const get = (field: string, fallback: unknown): unknown => {
    const value = config[field] ?? fallback;
    return value === undefined ? fail(field, 'is missing') : value;
  };
  const finite = (field: string, value: unknown): number =>
    typeof value === 'number' && Number.isFinite(value) ? value : fail(field, `must be a finite number, got ${JSON.stringify(value)}`);
  // 2^31: sizes end up as int32 shapes and ids.
  const whole = (field: string, value: unknown, least: number, most = 2 ** 31 - 1): number => {
    const number = finite(field, value);
    return Number.isInteger(number) && number >= least && number <= most
      ? number
      : fail(field, `must be a whole number from ${least} to ${most}, got ${number}`);
  };
  return {
    raw: (field) => config[field],
    integer: (field, fallback, { least = 1, most } = {}) => whole(field, get(field, fallback), least, most),
    optionalInteger: (field, fallback) => {
      const value = config[field] === undefined ? fallback : config[field];
      return value === null || value === undefined ? undefined : whole(field, value, 1);
    },
    number: (field, fallback) => finite(field, get(field, fallback)),
    flag: (field, fallback) => {
      const value = get(field, fallback);
      return typeof value === 'boolean' ? value : fail(field, `must be true or false, got ${JSON.stringify(value)}`);
    },
    text: (field, fallback) => {
      const value = get(field, fallback);
      return typeof value === 'string' ? value : fail(field, `must be text, got ${JSON.stringify(value)}`);
    },
    numbers: (field) => {
      const value = get(field, undefined);
      return Array.isArray(value) ? value.map((entry) => finite(field, entry)) : fail(field, 'must be a list of numbers');
    },
    fail,
  };
}
