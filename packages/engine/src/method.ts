import {
  AbortError,
  checkOptions,
  ConfigError,
  NiwakiError,
  nounWith,
  refuse,
  StateError,
  throwIfAborted,
  type Json,
  type Noun,
  type Traits,
} from '@niwaki/tensor';
import { disposeWeight, type ActivationQuantizer, type Weight } from '@niwaki/weights';
import { siteParty, type Adapter, type Model, type Point, type Selector, type Site } from '@niwaki/nn';
import { recordChange } from './base-changes.ts';
import { check } from './check.ts';
import { calibrate, sitesFrom, type Calibrate, type Walk } from './calibration/calibrate.ts';
import type { Collectors } from './calibration/collector.ts';
import type { Window } from './calibration/window.ts';
import { holdModel } from './hold.ts';
import { createReplacements, messageOf } from './replacements.ts';

/** What a method decided over all sites before it made the first: global budgets, shared parameters. */
export type Plan = Readonly<Record<string, unknown>>;

/**
 * What a method made for one site: the member its `makes` names. An adapter may come with the weight it starts from. A
 * method that makes adapters may leave sites out.
 */
export interface Made {
  /** Beside an adapter: what the site has to hold for the adapter to mean what it should. The caller's to put there. */
  readonly weight?: Weight;
  readonly adapter?: Adapter;
  /** What rounds the site's input from now on; a method that makes weights may make one beside each. */
  readonly input?: ActivationQuantizer;
  /** Takes back what else was changed for a weight, where the weight is taken back. Synchronous; holds no tensor. */
  readonly undo?: () => void;
}

/**
 * The one shape of one-shot methods (quantize, adapt, ...): validate every site → plan over all → make site by site.
 * `JSON.stringify(method)` is its part of a recipe.
 */
export interface Method<P extends Plan = Plan> {
  /** The method's name in recipes and errors: 'nf4', 'lora'. */
  readonly kind: string;
  /** What errors and tables call it where its options make another thing of it; default `kind`. */
  readonly title?: string;
  readonly options: { readonly [name: string]: Json };
  /** Of the method, and of what it makes. */
  readonly traits: Traits;
  /** 'weight': replaces what the site stores. 'input': rounds what it is given. 'adapter': adds middleware at the site. */
  readonly makes: 'weight' | 'input' | 'adapter';
  /** The sites it is for; default those that store a weight. Modules around linear maps must be named here to be found. */
  readonly points?: readonly Point[];
  /** Throws when the method cannot serve this site. Called for every site before the first is made; must not allocate. */
  validate?(site: Site, model: Model): void;
  /** Sees all sites at once. Absent: an empty plan. */
  plan?(sites: readonly Site[], model: Model): Promise<P>;
  /** Statistics of each site's input that `make` is given, by name; one pass a window. Needs calibration batches. */
  readonly collect?: Collectors;
  /** How a method with `collect` or `visit` goes over the blocks; default one at a time, on what the ones before give now. */
  readonly walk?: Walk;
  /**
   * Instead of `make`: replaces the weights of one window through `window.replace`, in its own order, with statistics
   * taken as it goes. Needs calibration batches.
   */
  visit?(window: Window, plan: P): Promise<void>;
  /**
   * Makes one site's part. It must not write to the site, and what it returns belongs to the driver.
   * @param statistics what `collect` gave for this site, by name; alive until the window ends
   */
  make(site: Site, plan: P, statistics?: Readonly<Record<string, unknown>>): Promise<Made>;
  toJSON(): { kind: string; options: { readonly [name: string]: Json } };
}

/**
 * Of a method that rounds matrices to codes. Codes of codes would carry both errors, so it wants the floats; `quantize` with
 * `requantize` takes the codes for them.
 */
export const roundsFloats: { readonly needs: readonly ['floats']; readonly help: { readonly floats: string } } = {
  needs: ['floats'],
  help: {
    floats: 'Load the model in floats; or pass `requantize: true`, which rounds once more what the codes stand for, and keeps both errors.',
  },
};

/** The same method, which takes what codes stand for as the floats that it needs. */
export const overCodes = (method: Method): Method => ({
  ...method,
  traits: { ...method.traits, needs: method.traits.needs?.filter((token) => token !== 'floats') ?? [] },
});

/** A method with its recipe form, and the traits that follow from how it works, from everything else. */
export function defineMethod<P extends Plan = Plan>(method: Omit<Method<P>, 'toJSON'>): Method<P> {
  return { ...method, traits: completed(method), toJSON: () => ({ kind: method.kind, options: method.options }) };
}

/** Who looks at data needs inputs; who makes a weight without looking around can do it for any matrix. */
function completed<P extends Plan>({ traits, makes, plan, collect, visit }: Omit<Method<P>, 'toJSON'>): Traits {
  if (collect !== undefined || visit !== undefined) return { ...traits, needs: [...(traits.needs ?? []), 'inputs'] };
  return makes === 'weight' && plan === undefined ? { ...traits, gives: [...(traits.gives ?? []), 'alone'] } : traits;
}

export interface MethodProgress {
  /** Sites finished. */
  readonly done: number;
  readonly total: number;
  /** The site just finished. */
  readonly path: string;
}

export interface ApplyOptions {
  /** Paths, globs or a predicate. */
  readonly at: Selector;
  /** Taken out of `at`; matching nothing is an error there too. */
  readonly exclude?: Selector;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: MethodProgress) => void;
  /**
   * Old weights are kept until the end, so that a failure takes everything back, while they fit in this many bytes;
   * default 256 MiB. A larger model is validated first, then replaced site by site, and a failure names what is done.
   */
  readonly undoBytes?: number;
  /** Data for methods that choose by what the inputs look like. */
  readonly calibrate?: Calibrate;
}

export const applyNames = ['at', 'exclude', 'signal', 'onProgress', 'undoBytes', 'calibrate'] as const;

export const aMethod: Noun = nounWith('a method, as nf4() or wanda() gives it', 'kind', 'make', 'traits');

export interface Applied<P extends Plan = Plan> {
  readonly plan: P;
  /** What was made, by site path, in the model's order. Weights are in the model already; adapters are the caller's to attach. */
  readonly made: ReadonlyMap<string, Made>;
}

/**
 * Runs a one-shot method over a model: the engine of `quantize` and `adapt`.
 *
 * Order: select → validate every site → plan → make. Adapters, and weights that come with them, are only collected, so
 * any failure leaves the model as it was. Weights are replaced one site at a time, so that float and packed copies of the whole model never coexist; up to
 * `undoBytes` of old weights are kept for taking everything back. Sites tied to one stored weight are made once.
 * @throws the method's own error with the site's path; `StateError` when some sites are replaced for good;
 * `BusyModelError` where weights would be replaced under a run
 */
export async function applyMethod<P extends Plan>(model: Model, method: Method<P>, options: ApplyOptions): Promise<Applied<P>> {
  checkCalibration(method, options);
  const selected = selectSites(model, method, options);
  const from = options.calibrate?.from;
  const sites = from === undefined ? selected : sitesFrom(model, selected, from);
  validateSites(method, sites, model);
  throwIfAborted(options.signal, method.kind);
  const plan = method.plan === undefined ? ({} as P) : await method.plan(sites, model);
  if (method.makes === 'adapter') return { plan, made: await makeAdapters(method, sites, plan, options) };
  const made = await replaceWeights(model, method, sites, plan, options);
  await recordChange(model, method, options, made);
  return { plan, made };
}

/** Refuses sites that a method cannot serve, by its traits and by its own say. Allocates nothing. */
export function validateSites<P extends Plan>(method: Method<P>, sites: readonly Site[], model: Model): void {
  for (const site of sites) {
    refuse(check({ sites: [siteParty(site)], methods: [method] }), { path: site.path });
    atSite(method, site, () => method.validate?.(site, model));
  }
}

/** The sites a method will serve: `at` without `exclude`, in the model's order; tied sites once where weights are made. */
export function selectSites(
  model: Model,
  method: Pick<Method, 'kind' | 'makes' | 'points'>,
  { at, exclude }: Pick<ApplyOptions, 'at' | 'exclude'>,
): readonly Site[] {
  const { points } = method;
  const out = new Set(exclude === undefined ? [] : model.sites(exclude, { points }));
  const sites = model.sites(at, { points }).filter((site) => !out.has(site));
  if (sites.length === 0) {
    throw new ConfigError(`${method.kind}: 'exclude' leaves nothing of 'at'`, { help: 'Narrow `exclude` or widen `at`.' });
  }
  if (method.makes !== 'weight') return sites;
  const seen = new Set<Weight>();
  return sites.filter((site) => {
    if (site.weight === undefined) {
      throw new ConfigError(`${method.kind}: '${site.path}' (${site.point}) stores no weight`, {
        path: site.path,
        point: site.point,
        help: "Select linear maps, for example at: 'all-linear'.",
      });
    }
    if (seen.has(site.weight)) return false;
    seen.add(site.weight);
    return true;
  });
}

async function makeAdapters<P extends Plan>(
  method: Method<P>,
  sites: readonly Site[],
  plan: P,
  { signal, onProgress }: ApplyOptions,
): Promise<ReadonlyMap<string, Made>> {
  const made = new Map<string, Made>();
  let done = 0;
  try {
    for (const site of sites) {
      throwIfAborted(signal, method.kind);
      const part = await atSite(method, site, () => method.make(site, plan));
      if (part.adapter !== undefined) made.set(site.path, part);
      onProgress?.({ done: ++done, total: sites.length, path: site.path });
    }
    if (made.size === 0) throw new StateError(`internal: ${method.kind} made no adapter`);
  } catch (error) {
    for (const { adapter, weight } of made.values()) {
      for (const parameter of Object.values(adapter!.parameters)) parameter.dispose();
      if (weight !== undefined) disposeWeight(weight);
    }
    throw error;
  }
  return made;
}

async function replaceWeights<P extends Plan>(
  model: Model,
  method: Method<P>,
  sites: readonly Site[],
  plan: P,
  options: ApplyOptions,
): Promise<ReadonlyMap<string, Made>> {
  const { signal } = options;
  const replacements = createReplacements(model, method, sites, options);
  const letGo = holdModel(model, method.kind);
  const put = (site: Site, made: Made): void => atSite(method, site, () => replacements.put(site, made));
  try {
    if (isCalibrated(method)) {
      const named: Method<P> = {
        ...method,
        make: (site, plan, statistics) => atSite(method, site, () => method.make(site, plan, statistics)),
      };
      await calibrate({ model, method: named, sites, plan, put, calibrate: options.calibrate!, ...(signal && { signal }) });
    } else {
      for (const site of sites) {
        throwIfAborted(signal, method.kind);
        put(site, await atSite(method, site, () => method.make(site, plan)));
      }
    }
  } catch (error) {
    throw replacements.undo(error);
  } finally {
    letGo();
  }
  replacements.settle();
  return replacements.made;
}

/** Whether a method chooses by what its inputs look like, and so needs calibration batches. */
export const isCalibrated = <P extends Plan>({ collect, visit }: Pick<Method<P>, 'collect' | 'visit'>): boolean =>
  collect !== undefined || visit !== undefined;

function checkCalibration<P extends Plan>(method: Method<P>, { calibrate: data }: ApplyOptions): void {
  if (data !== undefined) checkOptions('calibrate', data, ['batches', 'from', 'checkpoint', 'reference', 'onBlock', 'onFit']);
  if (isCalibrated(method) === (data !== undefined)) return;
  throw data === undefined
    ? new ConfigError(`${method.kind} chooses by what its inputs look like: it needs calibration batches`, {
        method: method.kind,
        help: 'Pass calibrate: { batches }, a few token batches of text like what the model will see.',
      })
    : new ConfigError(`${method.kind} reads no data, and calibration batches were given`, { method: method.kind });
}

/** Runs one site's part and puts the method and the path on whatever it throws. */
function atSite<T>(method: Pick<Method, 'kind'>, site: Site, run: () => T): T {
  try {
    const result = run();
    if (result instanceof Promise) return result.catch((error: unknown) => Promise.reject(named(error, method.kind, site.path))) as T;
    return result;
  } catch (error) {
    throw named(error, method.kind, site.path);
  }
}

function named(error: unknown, kind: string, path: string): Error {
  if (error instanceof AbortError || (NiwakiError.isInstance(error) && typeof error.details['path'] === 'string')) return error;
  const help = NiwakiError.isInstance(error) ? error.help : undefined;
  const Class = error instanceof NiwakiError ? (error.constructor as typeof NiwakiError) : NiwakiError;
  return new Class(`${kind} at '${path}': ${messageOf(error)}`, { path, cause: error, ...(help === undefined ? {} : { help }) });
}
