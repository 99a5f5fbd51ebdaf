import { ConfigError, matchesPath, type Parameter, type Role } from '@niwaki/tensor';
import type { Transform } from './transform.ts';

/** Parameters that are treated otherwise: all that have one of the roles and match one of the patterns, where given. */
export interface Group {
  readonly roles?: readonly Role[];
  /** Path patterns, as in `matchesPath`. */
  readonly at?: string | readonly string[];
  readonly weightDecay?: number;
  /** Factor of the learning rate, e.g. 16 for the B of LoRA+. */
  readonly rateScale?: number;
}

export type GroupSettings = Required<Pick<Group, 'weightDecay' | 'rateScale'>>;

/**
 * What holds for a parameter: the first group that takes it, over the defaults.
 * @example groups([{ roles: ['norm', 'bias'], weightDecay: 0 }])
 */
export function groups(list: readonly Group[]): (parameter: Parameter, defaults: GroupSettings) => GroupSettings {
  for (const [i, group] of list.entries()) {
    if (group.roles === undefined && group.at === undefined) {
      throw new ConfigError(`group ${i} takes every parameter: it names neither roles nor paths`, {
        group: i,
        help: 'Give `roles` or `at`, or change the options of the optimizer itself.',
      });
    }
  }
  return (parameter, defaults) => {
    const group = list.find((candidate) => takes(candidate, parameter));
    return { weightDecay: group?.weightDecay ?? defaults.weightDecay, rateScale: group?.rateScale ?? defaults.rateScale };
  };
}

function takes({ roles, at }: Group, { role, path }: Parameter): boolean {
  if (roles !== undefined && !roles.includes(role)) return false;
  return at === undefined || (typeof at === 'string' ? [at] : at).some((pattern) => matchesPath(pattern, path));
}

/** One transform a distinct setting, chosen by parameter; they share their name, layout and state entries. */
export function byGroup(list: readonly Group[], defaults: GroupSettings, make: (settings: GroupSettings) => Transform): Transform {
  const base = make(defaults);
  if (list.length === 0) return base;
  const settingsOf = groups(list);
  const made = new Map<string, Transform>();
  const of = (parameter: Parameter): Transform => {
    const settings = settingsOf(parameter, defaults);
    const key = `${settings.weightDecay} ${settings.rateScale}`;
    const known = made.get(key) ?? make(settings);
    made.set(key, known);
    return known;
  };
  // Validate every group now, not in the first step.
  for (const { weightDecay = defaults.weightDecay, rateScale = defaults.rateScale } of list) make({ weightDecay, rateScale });
  return {
    ...base,
    init: (parameter) => of(parameter).init(parameter),
    update: (gradient, state, context) => of(context.parameter).update(gradient, state, context),
  };
}
