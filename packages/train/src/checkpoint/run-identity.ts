import type { Description, Json } from '@niwaki/tensor';
import type { BaseChange } from '@niwaki/engine';

/**
 * What must be the same for the rest of the run to be the rest of that run. Not in it, and free to change: how often is
 * saved, evaluated and told, the device, the memory budget, how many refused steps end the run.
 */
export interface RunIdentity {
  readonly seed: string;
  /** More may be asked for where nothing so far went by their number. */
  readonly steps: number;
  readonly batchSize: number;
  readonly accumulate: number;
  /** Hash of what is trained on. */
  readonly data: string;
  /** How the stored matrices were made since the model was loaded. */
  readonly base: readonly BaseChange[];
  /** Method and options of each adapter, by name. */
  readonly adapters: { readonly [name: string]: Json };
  /** Hash of the model's form: paths, shapes, formats, and what trains. */
  readonly model: string;
  readonly optimizer: Description;
  readonly participants: readonly string[];
  readonly schedule: { readonly [option: string]: Json };
  readonly objective: Description;
  readonly estimator: Description;
}

/** One value that differs. */
export interface Difference {
  /** `optimizer.parts[1].weightDecay`; it begins with the field of the identity. */
  readonly path: string;
  readonly field: keyof RunIdentity;
  readonly was: Json | undefined;
  readonly is: Json | undefined;
}

/** What differs, what belongs to the user's own doing first. */
export function differencesOf(saved: RunIdentity, now: RunIdentity): readonly Difference[] {
  const fields = Object.keys(now) as (keyof RunIdentity)[];
  const all = fields.flatMap((field) =>
    differencesBetween(saved[field], now[field], field).map((leaf): Difference => ({ ...leaf, field })),
  );
  // Another base or adapter has another form: that is told where it comes from.
  const explained = all.some(({ field }) => field === 'base' || field === 'adapters');
  return explained ? all.filter(({ field }) => field !== 'model') : all;
}

/** Leaves of two plain values that differ; things of different kinds differ as a whole. */
export const differencesBetween = (was: unknown, is: unknown, path: string): readonly Omit<Difference, 'field'>[] =>
  leaves(was as Json | undefined, is as Json | undefined, path);

function leaves(was: Json | undefined, is: Json | undefined, path: string): Omit<Difference, 'field'>[] {
  if (Array.isArray(was) && Array.isArray(is)) {
    return Array.from({ length: Math.max(was.length, is.length) }, (_, i) => leaves(was[i], is[i], `${path}[${i}]`)).flat();
  }
  if (isObject(was) && isObject(is) && was['kind'] === is['kind']) {
    const keys = [...new Set([...Object.keys(was), ...Object.keys(is)])];
    return keys.flatMap((key) => leaves(was[key], is[key], `${path}.${key}`));
  }
  return JSON.stringify(was) === JSON.stringify(is) ? [] : [{ path, was, is }];
}

const isObject = (value: Json | undefined): value is { readonly [key: string]: Json } =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const longest = 200;

/** For people: both values. */
export function inWords({ path, was, is }: Omit<Difference, 'field'>): string {
  const told = (value: Json | undefined): string => {
    if (value === undefined) return 'absent';
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    return text.length > longest ? `${text.slice(0, longest)}…` : text;
  };
  return `${path} was ${told(was)}, is ${told(is)}`;
}

const another = 'begin a new run in another folder';
const fromAdapter = `To train on with others, ${another} that starts from what this one has (initAdapter).`;

/** What to do where a field differs. */
export const advice: Readonly<Record<keyof RunIdentity, string>> = {
  seed: `Give the seed that the run was started with, or ${another}.`,
  steps: `The rates of steps that were taken already, or what chooses entries, go by the number of steps. ${fromAdapter}`,
  batchSize: `Give what the run was started with, or ${another}.`,
  accumulate: `Give what the run was started with, or ${another}.`,
  data: `Give the data that the run was started with, or ${another}.`,
  base: `Prune and quantize as before, with the same options and the same calibration text, or ${another}.`,
  adapters: `Put the same adapter on before resuming, or ${another}.`,
  model: `Load the same model with the same adapter before resuming, or ${another}.`,
  optimizer: `An optimizer's state goes with its options. ${fromAdapter}`,
  participants: `Let the same take part, or ${another}.`,
  schedule: `Rates belong to a run. ${fromAdapter}`,
  objective: `Give the objective that the run was started with, or ${another}.`,
  estimator: `Give the estimator that the run was started with, or ${another}.`,
};
