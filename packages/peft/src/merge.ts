import { checkCall, checkOptions, NotFoundError, optional, type Noun } from '@niwaki/tensor';
import { aModel, type AdapterSet, type Model } from '@niwaki/nn';
import { ownedBy, type Warning } from './adapter-method.ts';
import { rewrite, type MergedSiteReport, type MergeOptions, type Originals } from './merge-rewrite.ts';
import { putBack } from './rewritten.ts';
import { collectWarnings } from './warning.ts';

export interface MergeReport {
  /** Everything merged now, in order. */
  readonly merged: readonly string[];
  readonly sites: readonly MergedSiteReport[];
  readonly warnings: readonly Warning[];
}

interface MergeState {
  /** Taken off the model while they are in its weights. */
  readonly sets: readonly AdapterSet[];
  readonly active: readonly string[];
  readonly originals: Originals;
}

const states = new WeakMap<Model, MergeState>();
/** Models that were told to let go of theirs. */
const known = new WeakSet<Model>();
const nothing: Originals = { sites: new Map(), values: new Map() };

/** Names merged into a model's weights, in order. */
export const mergedAdapters = (model: Model): readonly string[] => states.get(model)?.sets.map((set) => set.name) ?? [];

/**
 * Writes adapters into the weights, computed in f32, so that they cost nothing at inference. They leave the model's list
 * until `unmergeAdapter`, which puts the original weights back: both are kept, 4 bytes an entry of each merged site, until
 * the model is disposed or `forgetOriginals` is called.
 * All sites or none: the model is as it was if one result is not finite or anything else fails. Merging what is merged
 * changes nothing and says so in the report.
 * @param names default the active ones, in their order
 * @throws NumericError, ConfigError, NotFoundError
 */
export async function mergeAdapter(model: Model, names?: string | readonly string[], options: MergeOptions = {}): Promise<MergeReport> {
  checkMerging('mergeAdapter', { model, names, options });
  const { list: warnings, warn } = collectWarnings();
  const before = states.get(model);
  const done = mergedAdapters(model);
  const wanted = [names ?? model.active].flat();
  const again = wanted.filter((name) => done.includes(name));
  if (again.length > 0) warn('already-merged', `merged already: ${again.join(', ')}`, again);
  const added = [...new Set(wanted)].filter((name) => !done.includes(name)).map((name) => attachedSet(model, name));
  if (added.length === 0) {
    if (again.length === 0)
      throw new NotFoundError('no adapter is active, so there is nothing to merge', { attached: [...model.adapters.keys()] });
    return { merged: done, sites: [], warnings };
  }
  const sets = [...(before?.sets ?? []), ...added];
  const active = before?.active ?? model.active;
  const { originals, sites } = await rewrite(model, sets, before?.originals ?? nothing, options);
  if (!known.has(model)) model.whenDisposed(() => forgetOriginals(model));
  known.add(model);
  states.set(model, { sets, active, originals });
  for (const { name } of added) model.detach(name);
  return { merged: mergedAdapters(model), sites, warnings };
}

const someNames: Noun = {
  is: 'the name of an adapter, or a list of them',
  test: (given) => [given].flat().every((name) => typeof name === 'string'),
};

function checkMerging(verb: string, { model, names, options }: { model: Model; names: unknown; options: MergeOptions }): void {
  checkCall(`${verb}(model, 'default')`, { model: [model, aModel], names: [names, optional(someNames)] });
  checkOptions(verb, options, ['into', 'dtype']);
}

function attachedSet(model: Model, name: string): AdapterSet {
  const set = model.adapters.get(name);
  if (set === undefined) throw new NotFoundError(`no adapter '${name}' is attached`, { name, attached: [...model.adapters.keys()] });
  return set;
}

/**
 * Takes merged adapters out of the weights again: the original weights come back bit for bit, the sets are attached and
 * as active as they were. What stays merged is computed anew from the originals.
 * @param names default all
 */
export async function unmergeAdapter(model: Model, names?: string | readonly string[], options: MergeOptions = {}): Promise<MergeReport> {
  checkMerging('unmergeAdapter', { model, names, options });
  const state = states.get(model);
  const wanted = [names ?? mergedAdapters(model)].flat();
  const missing = wanted.filter((name) => !mergedAdapters(model).includes(name));
  if (state === undefined || missing.length > 0)
    throw new NotFoundError(`not merged: ${missing.join(', ') || 'no adapter is'}`, { names: missing, merged: mergedAdapters(model) });
  const [out, rest] = [state.sets.filter(({ name }) => wanted.includes(name)), state.sets.filter(({ name }) => !wanted.includes(name))];
  const activeNow = model.active;
  const { originals, sites } = await rewrite(model, rest, state.originals, options);
  if (rest.length === 0) states.delete(model);
  else states.set(model, { ...state, sets: rest, originals });
  for (const set of out) model.attach(set);
  const again = state.active.filter((name) => model.adapters.has(name));
  model.active = [...again, ...activeNow.filter((name) => !again.includes(name))];
  return { merged: mergedAdapters(model), sites, warnings: [] };
}

/**
 * Merges and lets go: every adapter set leaves the model and is freed, merged or not, and so are the original weights.
 * What is left is a plain model under Hugging Face names.
 */
export async function mergeAndUnload(model: Model, names?: string | readonly string[], options: MergeOptions = {}): Promise<MergeReport> {
  checkMerging('mergeAndUnload', { model, names, options });
  const report = await mergeAdapter(model, names, options);
  forgetOriginals(model);
  for (const name of model.adapters.keys()) {
    const set = model.detach(name);
    putBack(model, set);
    freeSet(set);
  }
  return report;
}

/** Frees what a later `unmergeAdapter` would need: the merge is for good. */
export function forgetOriginals(model: Model): void {
  const state = states.get(model);
  if (state === undefined) return;
  states.delete(model);
  const used = new Set(model.parameters().values());
  for (const { weight, bias } of state.originals.sites.values()) {
    for (const parameter of [...Object.values(weight.parts), ...(bias === undefined ? [] : [bias])])
      if (!used.has(parameter)) parameter.dispose();
  }
  for (const value of state.originals.values.values()) value.dispose();
  for (const set of state.sets) freeSet(set);
}

function freeSet(set: AdapterSet): void {
  for (const parameter of ownedBy(set)) parameter.dispose();
}
