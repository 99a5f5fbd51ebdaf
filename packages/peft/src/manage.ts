import { checkCall, checkOptions, ConfigError, listOf, NotFoundError, StateError, type Noun } from '@niwaki/tensor';
import { aModel, type AdapterSet, type Model } from '@niwaki/nn';
import { isScalable, ownedBy } from './adapter-method.ts';
import { mergedAdapters } from './merge.ts';
import { putBack } from './rewritten.ts';

/** The attached set of a name. @throws NotFoundError; StateError where it is merged */
export function adapterNamed(model: Model, name: string): AdapterSet {
  const set = model.adapters.get(name);
  if (set !== undefined) return set;
  if (mergedAdapters(model).includes(name))
    throw new StateError(`adapter '${name}' is merged into the weights`, { name, help: 'Call unmergeAdapter first.' });
  throw new NotFoundError(`no adapter '${name}' is attached`, { name, attached: [...model.adapters.keys()] });
}

const aName: Noun = { is: 'the name of an adapter', test: (given) => typeof given === 'string' };

export interface ActivateOptions {
  /** Whether the parameters of these sets train, and those of all others do not. Default false: nothing of that changes. */
  readonly train?: boolean;
}

/**
 * Makes these adapters the ones that every forward applies, in this order; their outputs add. None gives the base.
 * @throws NotFoundError, StateError; the model is as before then
 */
export function activateAdapters(model: Model, names: readonly string[], options: ActivateOptions = {}): void {
  checkCall("activateAdapters(model, ['default'])", { model: [model, aModel], names: [names, listOf(aName)] });
  checkOptions('activateAdapters', options, ['train']);
  const { train = false } = options;
  const sets = names.map((name) => adapterNamed(model, name));
  model.active = names;
  if (!train) return;
  for (const set of model.adapters.values()) for (const parameter of trainableOf(set)) parameter.trainable = sets.includes(set);
}

const trainableOf = (set: AdapterSet): ReturnType<typeof ownedBy> =>
  ownedBy(set).filter(({ role }) => role !== 'statistic' && role !== 'index');

/**
 * Takes an adapter off and frees its memory. If it was the only active one, the alphabetically first of the others is
 * active next, as in PEFT. A set that took a part out of the base (PiSSA, OLoRA) puts it back, f32 rounding apart.
 */
export function deleteAdapter(model: Model, name: string): void {
  const set = adapterNamed(model, name);
  const wasActive = model.active.includes(name);
  model.detach(name);
  putBack(model, set);
  disposeSet(set);
  const [next] = [...model.adapters.keys()].sort();
  if (wasActive && model.active.length === 0 && next !== undefined) model.active = [next];
}

export function disposeSet(set: AdapterSet): void {
  for (const parameter of ownedBy(set)) parameter.dispose();
}

/**
 * Turns an adapter up or down: its scale becomes strength·alpha/rank. Whole modules and token rows of the set stay as
 * they are. Not stored in files.
 * @throws ConfigError for a strength that is not finite, and for adapters without a scale
 */
export function setAdapterScale(model: Model, name: string, strength: number): void {
  const set = adapterNamed(model, name);
  if (!Number.isFinite(strength)) throw new ConfigError(`a strength is a finite number, got ${strength}`, { name, strength });
  const scalable = [...set.sites.values()].filter(isScalable);
  if (scalable.length === 0) throw new ConfigError(`adapter '${name}' (${set.method.kind}) has no scale`, { name, kind: set.method.kind });
  for (const adapter of scalable) adapter.strength = strength;
}
