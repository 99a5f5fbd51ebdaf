import { ConfigError, matchPaths, NotFoundError, ShapeError, StateError, type Parameter } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { AdapterSet, Carry, Model, ModelInfo, ReplaceOptions, Selector, Site, Stage } from './graph.ts';
import type { Attached } from './run-site.ts';
import type { Call } from '@niwaki/weights';

export interface StageSpec {
  readonly path: string;
  readonly reads: readonly string[];
  readonly writes: readonly string[];
  readonly constants?: readonly string[];
  readonly sites: readonly Site[];
  /** Parameters that belong to no site: norms. */
  readonly own: readonly Parameter[];
  run(carry: Carry, call: Call): Carry;
}

export interface GraphSpec {
  readonly info: ModelInfo;
  /** The stages in order; `attached` is what `runSite` and `readOwn` ask for the adapters of now. */
  stages(attached: Attached): readonly StageSpec[];
}

/**
 * A model from its stages: selection of sites, replacement of weights, adapters. What a family adds is how the stages
 * are made. The model owns every parameter it is given, and disposes them with itself.
 */
export function createGraph(spec: GraphSpec): Model {
  const adapters = new Map<string, AdapterSet>();
  let active: readonly string[] = [];
  const attached: Attached = {
    adapters,
    get active() {
      return active;
    },
  };
  const specs = spec.stages(attached);
  const stages = specs.map((stage): Stage => ({ ...stage, parameters: () => unique(parametersOf(stage, adapters)) }));
  const allSites = specs.flatMap((stage) => stage.sites);
  const siteAt = new Map(allSites.map((site) => [site.path, site]));
  const ties = new Map(allSites.flatMap((site) => (site.tiedTo === undefined ? [] : [[site, site.tiedTo] as const])));
  const holds = (site: Site, to: string): boolean => siteAt.get(to)?.weight === site.weight;
  const everything = (): Parameter[] =>
    unique([...specs.flatMap((stage) => parametersOf(stage, adapters)), ...[...adapters.values()].flatMap(parametersOfSet)]);

  const siteOf = (path: string): Site => exactly(path, siteAt, 'site');

  return {
    get info() {
      return [...ties].some(([site, to]) => !holds(site, to))
        ? { ...spec.info, config: { ...spec.info.config, tie_word_embeddings: false } }
        : spec.info;
    },
    stages: () => stages,
    sites: (at) => selectSites(allSites, at),
    parameters: () => new Map(everything().map((parameter) => [parameter.path, parameter])),
    replace: (path, weight, options = {}) => {
      replaceWeight(siteOf(path), allSites, weight, options);
      // A tie is one weight at two sites: cut when they part, and there again when the old weight comes back to both.
      for (const [site, to] of ties) {
        if (holds(site, to)) site.tiedTo = to;
        else delete site.tiedTo;
      }
    },
    adapters,
    attach: (set) => {
      checkSet(set, { adapters, siteAt, specs, taken: everything() });
      adapters.set(set.name, set);
      if (adapters.size === 1) active = [set.name];
    },
    detach: (name) => {
      const set = adapters.get(name);
      if (set === undefined) throw unknownAdapter(name, adapters);
      adapters.delete(name);
      active = active.filter((other) => other !== name);
      return set;
    },
    get active() {
      return active;
    },
    set active(names: readonly string[]) {
      checkActive(names, adapters);
      active = [...names];
    },
    dispose: () => {
      for (const parameter of everything()) parameter.dispose();
      adapters.clear();
      active = [];
    },
  };
}

/** The entry of one whole path, never of a pattern; the error lists near misses. */
function exactly<T>(path: string, entries: ReadonlyMap<string, T>, what: string): T {
  const found = entries.get(path);
  if (found !== undefined) return found;
  const matches = matchPaths(`^${path}`, entries.keys(), { what });
  throw new NotFoundError(`no ${what} is called '${path}'; as a pattern it stands for ${matches.length}`, { path, matches });
}

const unique = <T>(list: readonly T[]): T[] => [...new Set(list)];

const ofSite = (site: Site): Parameter[] => [...Object.values(site.weight?.parts ?? {}), ...(site.bias === undefined ? [] : [site.bias])];

/** Names under which a set may replace a stage's whole parameters. */
const replaceable = (stage: StageSpec): Map<string, readonly number[]> =>
  new Map([
    ...stage.own.map((parameter): [string, readonly number[]] => [parameter.path, parameter.shape]),
    ...stage.sites.flatMap((site): [string, readonly number[]][] => [
      ...(site.weight === undefined ? [] : [[`${site.path}.weight`, site.weight.shape] as [string, readonly number[]]]),
      ...(site.bias === undefined ? [] : [[`${site.path}.bias`, site.bias.shape] as [string, readonly number[]]]),
    ]),
  ]);

function parametersOf(stage: StageSpec, adapters: ReadonlyMap<string, AdapterSet>): Parameter[] {
  const names = adapters.size === 0 ? undefined : replaceable(stage);
  const extra = [...adapters.values()].flatMap((set) => [
    ...stage.sites.flatMap((site) => Object.values(set.sites.get(site.path)?.parameters ?? {})),
    ...[...set.replaced].filter(([path]) => names?.has(path)).map(([, parameter]) => parameter),
  ]);
  return [...stage.own, ...stage.sites.flatMap(ofSite), ...extra];
}

const parametersOfSet = (set: AdapterSet): Parameter[] => [
  ...[...set.sites.values()].flatMap((adapter) => Object.values(adapter.parameters)),
  ...set.replaced.values(),
];

/** A name for every linear map but the output head, as in PEFT. */
const isLinear = (site: Site): boolean => site.point === 'linear';

function selectSites(sites: readonly Site[], at: Selector): readonly Site[] {
  if (typeof at === 'function') {
    const found = sites.filter((site) => at(site));
    if (found.length > 0) return found;
    throw new NotFoundError('the predicate chooses no site', { sites: sites.length });
  }
  const linear = new Set(sites.filter(isLinear).map((site) => site.path));
  const paths = new Set(
    matchPaths(
      at,
      sites.map((site) => site.path),
      { what: 'site', aliases: { 'all-linear': (path) => linear.has(path) } },
    ),
  );
  return sites.filter((site) => paths.has(site.path));
}

function replaceWeight(site: Site, sites: readonly Site[], weight: Weight, { keep, untie, bias }: ReplaceOptions): void {
  const old = site.weight;
  if (old !== undefined && old.shape.join() !== weight.shape.join()) {
    throw new ShapeError(`'${site.path}' holds a matrix [${old.shape}], got [${weight.shape}]`, {
      path: site.path,
      expected: old.shape,
      given: weight.shape,
    });
  }
  const group = old === undefined ? [site] : sites.filter((other) => other.weight === old);
  const targets = untie ? [site] : group;
  const lookup = targets.find((target) => target.point === 'embedding');
  if (lookup !== undefined && weight.lookup === undefined) {
    throw new ConfigError(`'${lookup.path}' looks rows up by id, which a weight of kind '${weight.kind}' does not give`, {
      path: lookup.path,
      kind: weight.kind,
      help: 'Leave embeddings out of the selection, or choose a format with lookup.',
    });
  }
  if (bias !== undefined && site.bias !== undefined && bias.shape.join() !== site.bias.shape.join()) {
    throw new ShapeError(`'${site.path}' has a bias [${site.bias.shape}], got [${bias.shape}]`, {
      path: site.path,
      expected: site.bias.shape,
      given: bias.shape,
    });
  }
  for (const target of targets) target.weight = weight;
  if (bias !== undefined) {
    if (bias !== site.bias) site.bias?.dispose();
    site.bias = bias;
  }
  if (!keep && old !== undefined && old !== weight) disposeUnused(old, sites);
}

/** A new weight may be built around parts of the old one (a mask over it): those live on. */
function disposeUnused(old: Weight, sites: readonly Site[]): void {
  const used = new Set(sites.flatMap(ofSite));
  for (const part of Object.values(old.parts)) if (!used.has(part)) part.dispose();
}

interface SetContext {
  readonly adapters: ReadonlyMap<string, AdapterSet>;
  readonly siteAt: ReadonlyMap<string, Site>;
  readonly specs: readonly StageSpec[];
  readonly taken: readonly Parameter[];
}

function checkSet(set: AdapterSet, { adapters, siteAt, specs, taken }: SetContext): void {
  if (adapters.has(set.name)) {
    throw new StateError(`an adapter named '${set.name}' is attached already`, {
      name: set.name,
      help: 'Detach it first, or give this one another name.',
    });
  }
  if (set.sites.size === 0 && set.replaced.size === 0) {
    throw new ConfigError(`adapter '${set.name}' changes nothing: it has no site and replaces no parameter`, { name: set.name });
  }
  for (const [path, adapter] of set.sites) {
    const site = exactly(path, siteAt, `site of adapter '${set.name}'`);
    // The output head is a linear map that patterns for all linear maps leave out.
    if (adapter.point === site.point || (adapter.point === 'linear' && site.point === 'head')) continue;
    throw new ConfigError(`adapter '${set.name}' (${adapter.kind}) is for a ${adapter.point}, '${path}' is a ${site.point}`, {
      path,
      name: set.name,
      point: adapter.point,
      expected: site.point,
    });
  }
  const names = new Map(specs.flatMap((stage) => [...replaceable(stage)]));
  for (const [path, parameter] of set.replaced) {
    const shape = exactly(path, names, `parameter replaced by adapter '${set.name}'`);
    if (shape.join() === parameter.shape.join()) continue;
    throw new ShapeError(`adapter '${set.name}' replaces '${path}' [${shape}] by [${parameter.shape}]`, {
      path,
      name: set.name,
      expected: shape,
      given: parameter.shape,
    });
  }
  checkParameterPaths(set, taken);
}

function checkParameterPaths(set: AdapterSet, taken: readonly Parameter[]): void {
  const known = new Map(taken.map((parameter) => [parameter.path, parameter]));
  for (const parameter of parametersOfSet(set)) {
    const other = known.get(parameter.path);
    if (other !== undefined && other !== parameter) {
      throw new ConfigError(`adapter '${set.name}' brings a second parameter '${parameter.path}'`, {
        path: parameter.path,
        name: set.name,
      });
    }
    known.set(parameter.path, parameter);
  }
}

function checkActive(names: readonly string[], adapters: ReadonlyMap<string, AdapterSet>): void {
  const owner = new Map<string, string>();
  for (const name of names) {
    const set = adapters.get(name);
    if (set === undefined) throw unknownAdapter(name, adapters);
    if (names.indexOf(name) !== names.lastIndexOf(name)) throw new ConfigError(`adapter '${name}' is listed twice`, { name });
    for (const path of set.replaced.keys()) {
      const other = owner.get(path);
      if (other !== undefined)
        throw new ConfigError(`adapters '${other}' and '${name}' both replace '${path}'`, { path, names: [other, name] });
      owner.set(path, name);
    }
  }
}

const unknownAdapter = (name: string, adapters: ReadonlyMap<string, AdapterSet>): NotFoundError =>
  new NotFoundError(`no adapter '${name}' is attached`, { name, attached: [...adapters.keys()] });
