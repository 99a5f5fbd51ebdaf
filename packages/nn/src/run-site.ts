import {
  add,
  cast,
  ConfigError,
  equal,
  mul,
  NotFoundError,
  refuse,
  reshape,
  ShapeError,
  tile,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import type { Tensor1D, Tensor2D, Tensor4D } from '@niwaki/tensor';
import { asRead, denseWeight, frozenMatrix, type Call, type Weight } from '@niwaki/weights';
import type { Adapter, AdapterSet, Next, Site } from './graph.ts';
import { adapterParty, conflictsOfMixing } from './traits.ts';

/** Adapter sets on a model and the ones used when a call says nothing: a `Model` is one. */
export interface Attached {
  readonly adapters: ReadonlyMap<string, AdapterSet>;
  readonly active: readonly string[];
}

export interface RunOptions {
  /** What is given is only added to what the stage writes: where nobody reads that (`call.unread`), nobody reads this. */
  readonly last?: boolean;
}

/**
 * One linear map or embedding as the model sees it: weight and bias, then each active adapter wrapped around the ones
 * before it, the first nearest to the base. `view.adapters` of the call overrides the model's own list. What the site
 * rounds its input to is what all of them get.
 * @param given [rows, in] f32, or ids [rows] int32 at an embedding
 */
export function runSite(site: Site, given: Tensor, call: Call, attached: Attached, { last = false }: RunOptions = {}): Tensor2D {
  const x = site.input?.apply(given as Tensor2D, call) ?? given;
  const chosen = call.view.adapters ?? attached.active;
  if (isRowIndex(chosen)) return runMixed(site, x, asRead(call), attached, chosen);
  const sets = setsOf(chosen, attached);
  const own = last && sets.every((set) => onlyAdds(set.sites.get(site.path))) ? call : asRead(call);
  return around(site, own, sets, baseOf(site, own, sets))(x);
}

/** An operand of attention in its shape, [batch, time, heads, size]: as it comes, or with each head's row rounded. */
export function runOperand({ input }: Site, y: Tensor, shape: Tensor4D['shape'], call: Call): Tensor4D {
  return reshape(input === undefined ? y : input.apply(reshape(y, [-1, shape[3]]), call), shape);
}

/** An adapter that adds to what it is around needs none of it for a gradient. */
const onlyAdds = (adapter: Adapter | undefined): boolean => adapter === undefined || adapter.delta !== undefined;

/**
 * A module around linear maps (a site without a weight), with the active adapters of its path around it. `module` is given
 * the call to go on with.
 * @throws ConfigError where a batch has an adapter for each row and one of the sets is at this module
 */
export function runModule<X extends Tensor>(
  site: Site,
  x: X,
  module: (x: X, call: Call) => Tensor2D,
  call: Call,
  attached: Attached,
): Tensor2D {
  if (attached.adapters.size === 0) return module(x, call);
  const chosen = call.view.adapters ?? attached.active;
  if (!isRowIndex(chosen)) {
    const sets = setsOf(chosen, attached);
    const own = sets.some((set) => set.sites.has(site.path)) ? asRead(call) : call;
    return around(site, own, sets, (input) => module(input as X, own))(x);
  }
  for (const set of attached.adapters.values()) if (set.sites.has(site.path)) refuseMixed(set, site);
  return module(x, call);
}

/** Whether no adapter is around a place. */
export function isBare({ path }: Site, call: Call, attached: Attached): boolean {
  if (attached.adapters.size === 0) return true;
  const chosen = call.view.adapters ?? attached.active;
  const sets = isRowIndex(chosen) ? [...attached.adapters.values()] : setsOf(chosen, attached);
  return !sets.some((set) => set.sites.has(path));
}

/** The sets that a call reads; none where each row has its own. */
export function activeSets(call: Call, attached: Attached): readonly AdapterSet[] {
  if (attached.adapters.size === 0) return [];
  const chosen = call.view.adapters ?? attached.active;
  return isRowIndex(chosen) ? [] : setsOf(chosen, attached);
}

function around(site: Site, call: Call, sets: readonly AdapterSet[], base: Next): Next {
  let next = base;
  for (const set of sets) {
    const adapter = set.sites.get(site.path);
    if (adapter === undefined) continue;
    const inner = next;
    next = (input) => adapter.apply(input, inner, call, site);
  }
  return next;
}

const refuseMixed = ({ name, sites }: AdapterSet, { path }: Site): void =>
  refuse(conflictsOfMixing(adapterParty(name, path, sites.get(path)!)), { path });

/** A parameter that belongs to no site (a norm), or what an active set puts in its place; `tracked` as in `call.tracks`. */
export function readOwn(parameter: Parameter, call: Call, attached: Attached): { readonly value: Tensor; readonly tracked: boolean } {
  const chosen = call.view.adapters ?? attached.active;
  const sets = isRowIndex(chosen) ? [] : setsOf(chosen, attached);
  const read = replacement(parameter.path, sets) ?? parameter;
  return { value: call.value(read), tracked: call.tracks(read) };
}

const isRowIndex = (chosen: readonly string[] | 'none' | Tensor1D): chosen is Tensor1D => typeof chosen === 'object' && 'dtype' in chosen;

function setsOf(chosen: readonly string[] | 'none', { adapters }: Attached): readonly AdapterSet[] {
  if (chosen === 'none') return [];
  return chosen.map((name) => {
    const set = adapters.get(name);
    if (set !== undefined) return set;
    throw new NotFoundError(`no adapter '${name}' is attached`, { name, attached: [...adapters.keys()] });
  });
}

/** The last active set that replaces a path wins; the model refuses two that do so with whole parameters in its own list. */
function replacement(path: string, sets: readonly AdapterSet[]): Parameter | undefined {
  if (sets.length === 0) return undefined;
  const dot = path.lastIndexOf('.');
  const [module, name] = [path.slice(0, dot), path.slice(dot + 1)];
  return sets.reduce<Parameter | undefined>(
    (found, { replaced, sites }) => replaced.get(path) ?? sites.get(module)?.replaces?.[name] ?? found,
    undefined,
  );
}

function runBase(site: Site, x: Tensor, call: Call, sets: readonly AdapterSet[]): Tensor2D {
  const { weight, bias } = storedAt(site, sets);
  if (weight === undefined) throw new ConfigError(`site '${site.path}' holds no weight`, { path: site.path });
  const y = applyWeight(weight, site, x, call);
  return bias === undefined ? y : add(y, call.value(bias));
}

function baseOf(site: Site, call: Call, sets: readonly AdapterSet[]): Next {
  const product: Next['product'] = () => {
    const { weight, bias } = storedAt(site, sets);
    const matrix = site.point === 'embedding' || weight === undefined ? undefined : frozenMatrix(weight, call);
    return matrix && { matrix, bias: bias && call.value(bias) };
  };
  return Object.assign((x: Tensor) => runBase(site, x, call, sets), { product });
}

/** Weight and bias, or what an active set puts in their places. */
function storedAt(site: Site, sets: readonly AdapterSet[]): { readonly weight: Weight | undefined; readonly bias: Parameter | undefined } {
  const whole = replacement(`${site.path}.weight`, sets);
  return {
    weight: whole === undefined ? site.weight : asWeight(whole),
    bias: site.bias && (replacement(`${site.path}.bias`, sets) ?? site.bias),
  };
}

function applyWeight(weight: Weight, site: Site, x: Tensor, call: Call): Tensor2D {
  if (site.point !== 'embedding') return weight.apply(x as Tensor2D, call);
  if (weight.lookup !== undefined) return weight.lookup(x as Tensor1D, call);
  throw new ConfigError(`a weight of kind '${weight.kind}' gives no rows by id, which '${site.path}' needs`, {
    path: site.path,
    kind: weight.kind,
  });
}

const wrapped = new WeakMap<Parameter, Weight>();
function asWeight(parameter: Parameter): Weight {
  const known = wrapped.get(parameter);
  if (known !== undefined) return known;
  const weight = denseWeight(parameter);
  wrapped.set(parameter, weight);
  return weight;
}

/**
 * One adapter per row of the batch: `index` [batch] int32 counts the attached sets in order, anything else is the base.
 * Every set runs on every row and is masked: which rows are whose stays on the device.
 */
function runMixed(site: Site, x: Tensor, call: Call, { adapters }: Attached, index: Tensor1D): Tensor2D {
  const batch = index.shape[0];
  const rows = x.shape[0]!;
  let y = runBase(site, x, call, []);
  let position = -1;
  for (const set of adapters.values()) {
    position++;
    refuseReplaced(set);
    const adapter = set.sites.get(site.path);
    if (adapter === undefined) continue;
    refuseMixed(set, site);
    const delta = adapter.delta!();
    if (rows % batch !== 0) {
      throw new ShapeError(`'${site.path}' runs on ${rows} rows, which ${batch} adapter indices do not divide`, {
        path: site.path,
        rows,
        batch,
      });
    }
    const chosen = cast(reshape(equal(index, position), [batch, 1, 1]), 'float32');
    const mask = reshape(tile(chosen, [1, rows / batch, 1]), [rows, 1]);
    y = add(y, mul(applyWeight(delta, site, x, call), mask));
  }
  return y;
}

function refuseReplaced(set: AdapterSet): void {
  if (set.replaced.size === 0) return;
  throw new ConfigError(`adapter '${set.name}' replaces whole parameters and cannot be mixed by row`, {
    name: set.name,
    replaced: [...set.replaced.keys()],
  });
}
