import { StateError, type Parameter } from '@niwaki/tensor';
import { addedStages, streamsReadAt } from './added-stages.ts';
import { checkActive, checkSet, unknownAdapter } from './check-adapters.ts';
import type { AdapterSet, Model, ModelInfo, Site, Stage } from './graph.ts';
import { replaceInput, replaceWeight } from './replace-weight.ts';
import { withActivations } from './stored-activations.ts';
import { withSparsity } from './stored-sparsity.ts';
import type { Attached } from './run-site.ts';
import { exactly, selectSites } from './select-sites.ts';
import { parametersOf, parametersOfSet, placesOf, unique, type StageSpec } from './stage-parameters.ts';

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
  const guests: (() => void)[] = [];
  let active: readonly string[] = [];
  let disposed = false;
  let revision = 0;
  const refuseDisposed = (): void => {
    if (disposed) throw new StateError('the model was disposed', { help: 'Load it anew, or call dispose after the last use.' });
  };
  const attached: Attached = {
    adapters,
    get active() {
      return active;
    },
  };
  const specs = spec.stages(attached);
  const stages = specs.map((stage): Stage => ({
    ...stage,
    get reads() {
      return unique([...stage.reads, ...streamsReadAt(stage, adapters)]);
    },
    parameters: () => unique(parametersOf(stage, adapters)),
    run: (carry, call) => stage.run(carry, { ...call, streams: carry }),
  }));
  const added = new Map<string, ReadonlyMap<StageSpec, readonly Stage[]>>();
  const allSites = specs.flatMap((stage) => stage.sites);
  const places = specs.flatMap(placesOf);
  const couplings = specs.flatMap((stage) => stage.couplings ?? []);
  const placeAt = new Map(places.map((site) => [site.path, site]));
  const siteAt = new Map(allSites.map((site) => [site.path, site]));
  const ties = new Map(allSites.flatMap((site) => (site.tiedTo === undefined ? [] : [[site, site.tiedTo] as const])));
  const holds = (site: Site, to: string): boolean => siteAt.get(to)?.weight === site.weight;
  const everything = (): Parameter[] =>
    unique([...specs.flatMap((stage) => parametersOf(stage, adapters)), ...[...adapters.values()].flatMap(parametersOfSet)]);

  const siteOf = (path: string): Site => exactly(path, siteAt, 'site');

  const info: ModelInfo = {
    ...spec.info,
    // What holds now: found by a look at every site, so only for who asks.
    get config() {
      const config = withSparsity(withActivations(spec.info.config, places), allSites);
      return [...ties].every(([site, to]) => holds(site, to)) ? config : { ...config, tie_word_embeddings: false };
    },
  };

  const model: Model = {
    info,
    stages: () => {
      refuseDisposed();
      return stages.flatMap((stage, s) => [stage, ...[...added.values()].flatMap((of) => of.get(specs[s]!) ?? [])]);
    },
    sites: (at, { points } = {}) => {
      refuseDisposed();
      return selectSites(points === undefined ? allSites : places.filter((site) => points.includes(site.point)), at);
    },
    couplings,
    parameters: () => new Map(everything().map((parameter) => [parameter.path, parameter])),
    get revision() {
      return revision;
    },
    replace: (path, weight, options = {}) => {
      revision++;
      replaceWeight(siteOf(path), allSites, weight, options);
      // A tie is one weight at two sites: cut when they part, and there again when the old weight comes back to both.
      for (const [site, to] of ties) {
        if (holds(site, to)) site.tiedTo = to;
        else delete site.tiedTo;
      }
    },
    replaceInput: (path, input, options = {}) => {
      revision++;
      replaceInput(exactly(path, placeAt, 'site'), places, input, options);
    },
    adapters,
    attach: (set) => {
      checkSet(set, { adapters, siteAt: placeAt, specs, taken: everything() });
      added.set(set.name, addedStages(set, specs, model));
      adapters.set(set.name, set);
      revision++;
      if (adapters.size === 1) active = [set.name];
    },
    detach: (name) => {
      const set = adapters.get(name);
      if (set === undefined) throw unknownAdapter(name, adapters);
      adapters.delete(name);
      added.delete(name);
      revision++;
      active = active.filter((other) => other !== name);
      return set;
    },
    get active() {
      return active;
    },
    set active(names: readonly string[]) {
      checkActive(names, adapters);
      active = [...names];
      revision++;
    },
    whenDisposed: (free) => void guests.push(free),
    dispose: () => {
      for (const free of guests.splice(0)) free();
      for (const parameter of everything()) parameter.dispose();
      adapters.clear();
      added.clear();
      active = [];
      disposed = true;
    },
  };
  return model;
}
