import { ConfigError, NotFoundError, ShapeError, StateError, type Parameter } from '@niwaki/tensor';
import type { AdapterSet, Point, Site } from './graph.ts';
import { exactly } from './select-sites.ts';
import { parametersOfSet, replaceable, type StageSpec } from './stage-parameters.ts';

interface SetContext {
  readonly adapters: ReadonlyMap<string, AdapterSet>;
  readonly siteAt: ReadonlyMap<string, Site>;
  readonly specs: readonly StageSpec[];
  readonly taken: readonly Parameter[];
}

/** Throws the reason why a set cannot be attached: a name taken, a site or parameter that is not there, another shape or kind of site. */
export function checkSet(set: AdapterSet, { adapters, siteAt, specs, taken }: SetContext): void {
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
    if (fits(adapter.point, site.point)) continue;
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

/** The output head is a linear map that patterns for all linear maps leave out. */
const fits = (adapter: Point, site: Point): boolean =>
  adapter === site || (adapter === 'linear' && site === 'head') || (adapter === 'sublayer' && (site === 'attention' || site === 'ffn'));

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

/** Throws where a list of active sets names one that is not attached, or two that replace the same parameter. */
export function checkActive(names: readonly string[], adapters: ReadonlyMap<string, AdapterSet>): void {
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

export const unknownAdapter = (name: string, adapters: ReadonlyMap<string, AdapterSet>): NotFoundError =>
  new NotFoundError(`no adapter '${name}' is attached`, { name, attached: [...adapters.keys()] });
