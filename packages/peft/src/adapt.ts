import { checkCall, checkOptions, ConfigError, createDraw, StateError, type Parameter } from '@niwaki/tensor';
import { applyMethod, type ApplyOptions } from '@niwaki/engine';
import { disposeWeight, fingerprintOf, type Weight } from '@niwaki/weights';
import { aModel, aSelector, type Adapter, type AdapterSet, type Model, type Selector, type Site } from '@niwaki/nn';
import {
  anAdapterMethod,
  baseOf,
  type AdapterMethod,
  type Binding,
  type FileFields,
  type PeftSet,
  type StoredValues,
  type Warning,
} from './adapter-method.ts';
import { fingerprintField } from './fingerprint.ts';
import { mergedAdapters } from './merge.ts';
import { putWeights, refuseShared } from './rewritten.ts';
import { restrictSites, targetSites, type TargetModules } from './targets.ts';
import { currentRows, tokenTargets, trainableTokens } from './trainable-tokens.ts';
import { collectWarnings } from './warning.ts';
import { copyParameters, refuseWholeAndRows, replacedNames } from './whole-modules.ts';

export interface AdaptOptions extends Pick<ApplyOptions, 'signal' | 'onProgress'> {
  /** Paths, globs, 'all-linear' or a predicate. */
  readonly at: Selector;
  /** Default 'default'. Letters, digits, '-' and '_': it becomes a part of parameter paths. */
  readonly name?: string;
  /** Of the starting values, default 0: the same seed gives the same numbers on every device. */
  readonly seed?: number | bigint;
  readonly onWarning?: (warning: Warning) => void;
}

/**
 * Puts adapters on a model and makes them what trains: the base is frozen, the new set is the active one.
 * The model is as it was if anything fails.
 * @throws NotFoundError with near misses when `at` names nothing; StateError when the name is taken
 * @example const set = await adapt(model, lora({ rank: 8 }), { at: ['q_proj', 'v_proj'] });
 */
export async function adapt(model: Model, method: AdapterMethod, options: AdaptOptions): Promise<PeftSet> {
  // Without any options it is `at` that is missing.
  checkOptions('adapt', options ?? {}, ['at', 'name', 'seed', 'signal', 'onProgress', 'onWarning']);
  checkCall("adapt(model, lora(), { at: 'all-linear' })", {
    model: [model, aModel],
    method: [method, anAdapterMethod],
    at: [options?.at, aSelector],
  });
  const { at, name = 'default', seed = 0, signal, onProgress, onWarning } = options;
  checkName(model, name);
  const { list: warnings, warn } = collectWarnings(onWarning);
  const { targeting, points } = method;
  const whole = typeof at === 'function' ? [] : [at].flat();
  const sites = restrictSites(model.sites(at, { points }), targeting, new Set(whole), warn);
  const tokens = tokenTargets(model, targeting.trainableTokens);
  const tokenSites = tokens.flatMap((target) => target.sites);
  refuseWholeAndRows(tokenSites, targeting);
  refuseBoth(sites, tokenSites);
  const paths = [...sites, ...tokenSites].map((site) => site.path);
  refuseShared(model, paths, { method, merged: mergedAdapters(model) });

  const owned: Parameter[] = [];
  const weights = new Map<string, Weight>();
  const keep = <T extends ReadonlyMap<string, Adapter>>(adapters: T): T => {
    for (const adapter of adapters.values()) owned.push(...Object.values(adapter.parameters));
    return adapters;
  };
  try {
    const replaced = copyParameters(model, replacedNames(model, new Set(sites.map((site) => site.path)), targeting), name);
    owned.push(...replaced.values());
    const binding: Binding = { name, draw: createDraw(seed, 0), biasOf: (site) => replaced.get(`${site.path}.bias`), warn };
    const chosen = new Set(sites);
    const { made } = await applyMethod(model, method.bind(binding), {
      at: (site) => chosen.has(site),
      ...(signal && { signal }),
      ...(onProgress && { onProgress }),
    });
    for (const [path, { weight }] of made) if (weight !== undefined) weights.set(path, weight);
    const adapters = keep(new Map([...made].map(([path, { adapter }]) => [path, adapter!])));
    const rows = tokens.map((target) => keep(trainableTokens(target, currentRows(target.sites[0]!, target.ids), name)));
    const set: PeftSet = {
      name,
      method,
      sites: new Map([...adapters, ...rows.flatMap((map) => [...map])]),
      replaced,
      base: model.info.source,
      targets: targetsFor(
        model,
        at,
        sites.filter(({ path }) => adapters.has(path)),
        method,
      ),
      fields: {
        ...fieldsFor(model),
        ...method.fileFields?.(model),
        ...(method.rewrites && !method.repeatable && { [fingerprintField]: await fingerprintOf(weights) }),
      },
      // What is shared by all sites is no change of an embedding's own rows.
      alsoStored: storedEmbeddings(model, method.shared === undefined ? sites : [], tokens.length > 0),
      warnings,
    };
    attachActive(model, set);
    putWeights(model, weights);
    return set;
  } catch (error) {
    for (const parameter of owned) parameter.dispose();
    for (const weight of weights.values()) disposeWeight(weight);
    throw error;
  }
}

/** @throws ConfigError for a name that cannot be in a path; StateError for one that is taken */
export function checkName(model: Model, name: string): void {
  if (!/^[\w-]+$/.test(name))
    throw new ConfigError(`'${name}' is no name for an adapter`, { name, help: "Use letters, digits, '-' and '_'." });
  if (model.adapters.has(name) || mergedAdapters(model).includes(name)) {
    throw new StateError(`an adapter named '${name}' is on the model already`, {
      name,
      help: 'Delete it first, or give this one another name.',
    });
  }
}

function refuseBoth(sites: readonly Site[], tokenSites: readonly Site[]): void {
  const both = tokenSites.find((site) => sites.includes(site));
  if (both === undefined) return;
  throw new ConfigError(`'${both.path}' gets an adapter and trainable tokens, which both change its rows`, {
    path: both.path,
    help: 'Take the embedding out of `at`, or leave trainableTokens away.',
  });
}

/** Attaches a set, makes it the active one and freezes everything else. */
export function attachActive(model: Model, set: AdapterSet): void {
  const before = [...model.parameters().values()];
  model.attach(set);
  model.active = [set.name];
  for (const parameter of before) parameter.trainable = false;
}

/** The shortest `target_modules` that means these sites and no others: as it was given, by last name, or by whole path. */
export function targetsFor(
  model: Model,
  at: Selector,
  sites: readonly Site[],
  { targeting, points }: Pick<AdapterMethod, 'targeting' | 'points'>,
): TargetModules {
  const all = model.sites(() => true, { points });
  const paths = sites.map((site) => site.path);
  const means = (names: readonly string[]): boolean => {
    try {
      return (
        targetSites(all, names, targeting, () => {})
          .map((site) => site.path)
          .join() === paths.join()
      );
    } catch {
      return false;
    }
  };
  const given = typeof at === 'function' ? [] : [at].flat();
  const last = [...new Set(paths.map((path) => path.slice(path.lastIndexOf('.') + 1)))].sort();
  return [given, last].find((names) => names.length > 0 && means(names)) ?? paths;
}

/** What a Python reader wants to know beside the method. */
export function fieldsFor(model: Model): FileFields {
  const [architecture] = (model.info.config['architectures'] as readonly string[] | undefined) ?? [];
  const task = architecture?.endsWith('ForSequenceClassification') ? 'SEQ_CLS' : architecture?.endsWith('ForCausalLM') ? 'CAUSAL_LM' : null;
  return { task_type: task, ...(model.info.config['model_type'] === 'gpt2' && { fan_in_fan_out: true }) };
}

const embeddingNames: ReadonlySet<string> = new Set(['embed_tokens', 'lm_head']);

/** PEFT stores the base weights of adapted embeddings, unless only rows of them train; its loader then expects them. */
function storedEmbeddings(model: Model, sites: readonly Site[], rows: boolean): Map<string, StoredValues> {
  const named = rows ? [] : sites.filter(({ path }) => embeddingNames.has(path.slice(path.lastIndexOf('.') + 1)));
  return new Map(named.map(({ path }) => [`${path}.weight`, baseOf(model, `${path}.weight`)]));
}
