import {
  abs,
  cast,
  denseParameter,
  equal,
  keep,
  logicalAnd,
  max,
  notEqual,
  NumericError,
  refuse,
  slice,
  square,
  stack,
  sub,
  sum,
  tidy,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import { check } from '@niwaki/engine';
import { denseWeight, disposeWeight, type Weight } from '@niwaki/weights';
import { adapterParty, siteParty, type AdapterSet, type Model, type Place, type Site } from '@niwaki/nn';
import { mergedSite, refuseNonFinite, roundedTo, type Before, type MergedValues } from './merge-site.ts';

export interface MergeOptions {
  /**
   * Dense bases and halves (F16, BF16) keep their storage, rounded once at the end. What a quantized base becomes: 'dense'
   * f32 (8 times the memory of 4 bits), or 'requantize': its own format again, which loses part of the change, as the
   * report says. A pruned base: 'dense' fills its zeros, and the report counts them; 'requantize' keeps them, and what the
   * adapter does there is lost. Without it a quantized or pruned base is refused.
   */
  readonly into?: 'dense' | 'requantize';
  /** Rounds merged values once, to the type that the model's file has; default 'f32': no rounding. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
}

/** How far the stored weight is from the f32 sum. All 0 where it is stored as f32. */
export interface MergedSiteReport {
  readonly path: string;
  /** Of the new weight: 'dense', or the base's format. */
  readonly kind: string;
  /** Largest absolute difference of an entry. */
  readonly maxError: number;
  /** Frobenius norm of the difference over that of the sum. */
  readonly relativeError: number;
  /** Frobenius norm of the difference over that of the change: from about 1 on, the adapter is lost in the rounding. */
  readonly changeError: number;
  /** Entries that were 0 in the base and are not now. */
  readonly zerosLost: number;
}

/** What the model held before the first merge: kept alive, put back as it is. */
export interface Originals {
  readonly sites: ReadonlyMap<Site, Before>;
  /** Parameters of no site (norms), and copies of their values. */
  readonly values: ReadonlyMap<Parameter, Tensor>;
}

export interface Rewritten {
  readonly originals: Originals;
  readonly sites: readonly MergedSiteReport[];
}

interface Fresh {
  readonly weight: Weight;
  readonly bias: Parameter | undefined;
}

/**
 * Makes the model's weights what these sets merge them to, starting from the originals; no set puts the originals back.
 * Everything is computed before the first site changes, and the change itself cannot fail.
 */
export async function rewrite(model: Model, sets: readonly AdapterSet[], before: Originals, options: MergeOptions): Promise<Rewritten> {
  const sites = model.sites(() => true);
  refuseUnmergeable(sets, options);
  const touched = sites.filter((site) => touches(sets, site));
  const originals = new Map(before.sites);
  for (const site of touched) if (!originals.has(site)) originals.set(site, { weight: site.weight!, bias: site.bias });
  const of = (site: Site): Before => originals.get(site)!;
  refuseLossy(
    touched.map((site) => ({ ...site, ...of(site) })),
    options,
  );

  const fresh = new Map<Site, Fresh>();
  const reports: MergedSiteReport[] = [];
  try {
    for (const site of touched) {
      const twin = [...fresh.keys()].find((other) => of(other).weight === of(site).weight && sameChange(sets, model, site, other));
      if (twin !== undefined) {
        fresh.set(site, fresh.get(twin)!);
        continue;
      }
      const { report, ...made } = await freshSite(site, of(site), sets, options);
      fresh.set(site, made);
      reports.push(report);
    }
    const values = await ownValues(model, sets, originals);
    return { originals: commit(model, { fresh, values, originals, kept: before.values }), sites: reports };
  } catch (error) {
    for (const made of fresh.values()) disposeFresh(made);
    throw error;
  }
}

/** @throws ConfigError for adapters that no matrix could stand for */
function refuseUnmergeable(sets: readonly AdapterSet[], { into }: MergeOptions): void {
  for (const { name, sites } of sets)
    for (const [path, adapter] of sites)
      refuse(check({ adapters: [adapterParty(name, path, adapter)], merge: { into } }), { path, name, kind: adapter.kind });
}

const touches = (sets: readonly AdapterSet[], { path }: Site): boolean =>
  sets.some((set) => set.sites.has(path) || set.replaced.has(`${path}.weight`) || set.replaced.has(`${path}.bias`));

/** @throws ConfigError for matrices that cannot take the sum as it is, where nobody said how */
function refuseLossy(sites: readonly Place[], { into }: MergeOptions): void {
  const refused = sites
    .map((site) => ({ site, conflicts: check({ sites: [siteParty(site)], merge: { into } }) }))
    .filter(({ conflicts }) => conflicts.length > 0);
  const [first] = refused;
  if (first === undefined) return;
  refuse(first.conflicts, { paths: refused.map(({ site }) => site.path), kind: first.site.weight!.kind });
}

/** Tied sites stay tied when the merged sets do the same to both: trained token rows, which they share. */
function sameChange(sets: readonly AdapterSet[], model: Model, one: Site, other: Site): boolean {
  const partsOf = ({ path }: Site): (Parameter | undefined)[] =>
    sets.flatMap((set) => [
      ...Object.values(set.sites.get(path)?.parameters ?? {}),
      set.replaced.get(`${path}.weight`),
      set.replaced.get(`${path}.bias`),
    ]);
  const [a, b] = [partsOf(one), partsOf(other)];
  const group = model.sites((site) => site.weight === one.weight);
  return a.length === b.length && a.every((part, i) => part === b[i]) && group.every((site) => touches(sets, site));
}

async function freshSite(
  site: Site,
  before: Before,
  sets: readonly AdapterSet[],
  { into, dtype = 'f32' }: MergeOptions,
): Promise<Fresh & { report: MergedSiteReport }> {
  const { path, point } = site;
  const values = await mergedSite(site, before, sets);
  try {
    const stored = await roundedTo(values.matrix, dtype);
    const { weight: old } = before;
    const encode = into !== 'dense' || old.exact === true ? old.encode : undefined;
    const role = point === 'embedding' ? 'embedding' : point === 'head' ? 'head' : 'matrix';
    const weight =
      encode === undefined ? denseWeight(denseParameter(`${path}.weight`, stored.clone(), { role })) : await encode(stored, path);
    if (stored !== values.matrix) stored.dispose();
    try {
      if (weight.matrix !== undefined) weight.matrix.trainable = old.matrix?.trainable ?? false;
      const bias =
        values.bias && denseParameter(`${path}.bias`, values.bias.clone(), { role: 'bias', trainable: before.bias?.trainable ?? false });
      return { weight, bias, report: await reportOf(path, weight, values, old) };
    } catch (error) {
      disposeWeight(weight);
      throw error;
    }
  } finally {
    values.matrix.dispose();
    values.bias?.dispose();
  }
}

/** Compares what is stored with the f32 sum, in tiles. @throws NumericError where the type cannot hold a value */
async function reportOf(path: string, weight: Weight, { matrix }: MergedValues, old: Weight): Promise<MergedSiteReport> {
  const [out, width] = weight.shape;
  const rows = Math.max(1, Math.floor(2 ** 20 / width));
  let [worst, lost, whole, changed, filled] = [0, 0, 0, 0, 0];
  for (let from = 0; from < out; from += rows) {
    const to = Math.min(out, from + rows);
    const tile = tidy(() => {
      const exact = slice(matrix, [from, 0], [to - from, width]);
      const [now, before] = [weight.dense([from, to]), old.dense([from, to])];
      const error = sub(now, exact);
      const fills = sum(cast(logicalAnd(equal(before, 0), notEqual(now, 0)), 'float32'));
      return stack([max(abs(error)), sum(square(error)), sum(square(exact)), sum(square(sub(exact, before))), fills]);
    });
    const [most, squares, total, change, fills] = (await tile.data()) as unknown as [number, number, number, number, number];
    tile.dispose();
    worst = Math.max(worst, most);
    lost += squares;
    whole += total;
    changed += change;
    filled += fills;
  }
  if (!Number.isFinite(lost)) {
    throw new NumericError(`'${path}' merged does not fit its ${weight.kind} storage; nothing was merged`, {
      path,
      kind: weight.kind,
      help: 'Choose a wider dtype.',
    });
  }
  const over = (total: number): number => (lost === 0 ? 0 : Math.sqrt(lost / total));
  return { path, kind: weight.kind, maxError: worst, relativeError: over(whole), changeError: over(changed), zerosLost: filled };
}

/** New values of parameters that belong to no site, which only a set's `replaced` changes. */
async function ownValues(model: Model, sets: readonly AdapterSet[], sites: ReadonlyMap<Site, Before>): Promise<Map<Parameter, Tensor>> {
  const siteNames = new Set([...sites.keys()].flatMap(({ path }) => [`${path}.weight`, `${path}.bias`]));
  const own = model.parameters();
  const values = new Map<Parameter, Tensor>();
  for (const set of sets) {
    const ofModules = [...set.sites].flatMap(([path, { replaces = {} }]) =>
      Object.entries(replaces).map(([name, parameter]) => [`${path}.${name}`, parameter] as const),
    );
    for (const [name, parameter] of [...set.replaced, ...ofModules]) {
      const target = siteNames.has(name) ? undefined : own.get(name);
      if (target === undefined) continue;
      await refuseNonFinite(parameter.read(), name);
      values.set(target, parameter.read());
    }
  }
  return values;
}

interface Changes {
  readonly fresh: ReadonlyMap<Site, Fresh>;
  readonly values: ReadonlyMap<Parameter, Tensor>;
  readonly originals: ReadonlyMap<Site, Before>;
  /** Originals of values that an earlier merge changed. */
  readonly kept: ReadonlyMap<Parameter, Tensor>;
}

/** Synchronous: puts new weights where there are some and originals everywhere else, then frees what is in use no more. */
function commit(model: Model, { fresh, values, originals, kept }: Changes): Originals {
  const stale = new Set<Parameter>();
  for (const [site, before] of originals) {
    const next = fresh.get(site) ?? before;
    for (const part of [...Object.values(site.weight!.parts), ...(site.bias === undefined ? [] : [site.bias])]) stale.add(part);
    model.replace(site.path, next.weight, { keep: true, untie: true });
    const bias = next.bias ?? before.bias;
    if (bias !== undefined) site.bias = bias;
  }
  const restored = new Map<Parameter, Tensor>();
  for (const [parameter, original] of kept) if (!values.has(parameter)) parameter.write(original);
  for (const [parameter, value] of values) {
    restored.set(parameter, kept.get(parameter) ?? keep(parameter.read().clone()));
    parameter.write(value.clone());
  }
  const still = new Map([...originals].filter(([site]) => fresh.has(site)));
  for (const { weight, bias } of originals.values())
    for (const part of [...Object.values(weight.parts), bias]) if (part !== undefined) stale.delete(part);
  for (const part of stale) part.dispose();
  return { sites: still, values: restored };
}

function disposeFresh({ weight, bias }: Fresh): void {
  disposeWeight(weight);
  bias?.dispose();
}
