import { ConfigError } from './errors.ts';

/** What a verb takes in one place: how people call it, and how it is known. */
export interface Noun {
  /** As it goes on after 'must be': 'a model, as load() gives it'. */
  readonly is: string;
  readonly test: (given: unknown) => boolean;
}

/** A noun known by its members. */
export const nounWith = (is: string, ...members: readonly string[]): Noun => ({
  is,
  test: (given) => typeof given === 'object' && given !== null && members.every((member) => member in given),
});

export const listOf = ({ is, test }: Noun): Noun => ({
  is: `a list, each ${is}`,
  test: (given) => Array.isArray(given) && given.every(test),
});

export const optional = ({ is, test }: Noun): Noun => ({ is, test: (given) => given === undefined || test(given) });

/**
 * Refuses arguments that are something else than a verb takes, which plain JavaScript lets through.
 * @param call a right one, for the error: 'quantize(model, nf4())'
 * @param given by name: what came, and what it has to be
 * @throws ConfigError that names the argument, what was given and what is expected, and shows the right call
 * @example checkCall('quantize(model, nf4())', { model: [model, aModel], method: [method, aMethod] });
 */
export function checkCall(call: string, given: Readonly<Record<string, readonly [unknown, Noun]>>): void {
  for (const [name, [value, { is, test }]] of Object.entries(given)) {
    if (test(value)) continue;
    const verb = call.slice(0, call.indexOf('('));
    throw new ConfigError(`${verb}: ${name} must be ${is}, got ${inWords(value)}`, { verb, name, given: value, help: `Such as ${call}.` });
  }
}

function inWords(value: unknown): string {
  if (value === undefined || value === null) return 'nothing';
  if (typeof value === 'string') return `'${value}'`;
  if (typeof value === 'function') return `the function ${value.name}, which has to be called`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value !== 'object') return String(value);
  return `an object with ${Object.keys(value).slice(0, 6).join(', ') || 'nothing'}`;
}
