import type { Parameter } from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import type { Coupling } from './coupling.ts';
import type { Adapter, AdapterSet, Carry, Site } from './graph.ts';

/** A stage as a family writes it: what it stores apart from its sites is listed, the rest follows from them. */
export interface StageSpec {
  readonly path: string;
  readonly reads: readonly string[];
  readonly writes: readonly string[];
  readonly constants?: readonly string[];
  readonly sites: readonly Site[];
  /** Sites without a weight: modules around those of `sites`. */
  readonly modules?: readonly Site[];
  /** What its sites and norms share inside the stage. */
  readonly couplings?: readonly Coupling[];
  /** Parameters that belong to no site: norms. */
  readonly own: readonly Parameter[];
  run(carry: Carry, call: Call): Carry;
}

/** In order, each once. */
export const unique = <T>(list: readonly T[]): T[] => [...new Set(list)];

/** Every place for an adapter, modules before what they hold. */
export const placesOf = ({ modules = [], sites }: StageSpec): readonly Site[] => [...modules, ...sites];

/** What a set has at a stage's places. */
export const adaptersAt = (stage: StageSpec, { sites }: AdapterSet): Adapter[] =>
  placesOf(stage).flatMap(({ path }) => sites.get(path) ?? []);

/** What is stored at a site. */
export const ofSite = (site: Site): Parameter[] => [
  ...Object.values(site.weight?.parts ?? {}),
  ...(site.bias === undefined ? [] : [site.bias]),
  ...Object.values(site.input?.parts ?? {}),
];

/** Names under which a set may replace a stage's whole parameters. */
export const replaceable = (stage: StageSpec): Map<string, readonly number[]> =>
  new Map([
    ...stage.own.map((parameter): [string, readonly number[]] => [parameter.path, parameter.shape]),
    ...stage.sites.flatMap((site): [string, readonly number[]][] => [
      ...(site.weight === undefined ? [] : [[`${site.path}.weight`, site.weight.shape] as [string, readonly number[]]]),
      ...(site.bias === undefined ? [] : [[`${site.path}.bias`, site.bias.shape] as [string, readonly number[]]]),
    ]),
  ]);

/** Everything a stage reads, adapters attached now included. */
export function parametersOf(stage: StageSpec, adapters: ReadonlyMap<string, AdapterSet>): Parameter[] {
  const names = adapters.size === 0 ? undefined : replaceable(stage);
  const extra = [...adapters.values()].flatMap((set) => [
    ...adaptersAt(stage, set).flatMap((adapter) => (adapter.stages === undefined ? Object.values(adapter.parameters) : [])),
    ...[...set.replaced].filter(([path]) => names?.has(path)).map(([, parameter]) => parameter),
  ]);
  return [...stage.own, ...placesOf(stage).flatMap(ofSite), ...extra];
}

/** Everything a set brings. */
export const parametersOfSet = (set: AdapterSet): Parameter[] => [
  ...[...set.sites.values()].flatMap((adapter) => Object.values(adapter.parameters)),
  ...set.replaced.values(),
];
