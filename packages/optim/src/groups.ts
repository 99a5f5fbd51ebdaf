import { checkOptions, ConfigError, matchesPath, outOfRange, type Json, type Parameter, type Role } from '@niwaki/tensor';

/** Some of the parameters: all that have one of the roles and match one of the patterns, where given. */
export interface Selection {
  readonly roles?: readonly Role[];
  /** Path patterns, as in `matchesPath`. */
  readonly at?: string | readonly string[];
}

export const selectionNames = ['roles', 'at'] as const;

/** Parameters that are treated otherwise. */
export interface Group extends Selection {
  readonly weightDecay?: number;
  /** Factor of the learning rate, e.g. 16 for the B of LoRA+. */
  readonly rateScale?: number;
}

/** A number for all parameters, or one of a parameter's own, which may say of itself what it gives to whom. */
export type PerParameter = number | (((parameter: Parameter) => number) & { toJSON?(): Json });

export const valueFor = (setting: PerParameter, parameter: Parameter): number =>
  typeof setting === 'number' ? setting : setting(parameter);

/**
 * What holds for each parameter: the first group that takes it, over the defaults.
 * @example groups([{ roles: ['norm', 'bias'], weightDecay: 0 }], { weightDecay: 0.01 })
 */
export function groups(
  list: readonly Group[],
  otherwise: { weightDecay?: number; rateScale?: number } = {},
): { weightDecay: PerParameter; rateScale: PerParameter } {
  checkOptions('groups', otherwise, ['weightDecay', 'rateScale']);
  const { weightDecay = 0, rateScale = 1 } = otherwise;
  check(-1, { weightDecay, rateScale });
  for (const [i, group] of list.entries()) {
    checkOptions(`group ${i}`, group, [...selectionNames, 'weightDecay', 'rateScale']);
    check(i, group);
  }
  if (list.length === 0) return { weightDecay, rateScale };
  const of = (parameter: Parameter): Group | undefined => list.find((group) => takes(group, parameter));
  const perParameter = (name: 'weightDecay' | 'rateScale', rest: number): PerParameter =>
    Object.assign((parameter: Parameter) => of(parameter)?.[name] ?? rest, {
      toJSON: (): Json => ({ groups: list.map(({ roles, at, ...group }) => dataOf({ roles, at, [name]: group[name] })), otherwise: rest }),
    });
  return { weightDecay: perParameter('weightDecay', weightDecay), rateScale: perParameter('rateScale', rateScale) };
}

/** What of it is given, as data. */
const dataOf = (group: object): Json => JSON.parse(JSON.stringify(group)) as Json;

function check(index: number, { roles, at, weightDecay = 0, rateScale = 1 }: Group): void {
  if (index >= 0 && roles === undefined && at === undefined) {
    throw new ConfigError(`group ${index} takes every parameter: it names neither roles nor paths`, {
      group: index,
      help: 'Give `roles` or `at`, or change the options of the optimizer itself.',
    });
  }
  for (const [name, value] of Object.entries({ weightDecay, rateScale })) {
    if (!(value >= 0 && value < Infinity))
      throw outOfRange(index < 0 ? 'parameters' : `group ${index}`, name, value, 'a finite number of at least 0');
  }
}

/** Whether a selection holds a parameter; an empty one holds all. */
export function takes({ roles, at }: Selection, { role, path }: Parameter): boolean {
  if (roles !== undefined && !roles.includes(role)) return false;
  return at === undefined || (typeof at === 'string' ? [at] : at).some((pattern) => matchesPath(pattern, path));
}
