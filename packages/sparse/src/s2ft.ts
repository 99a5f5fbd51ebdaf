import * as v from 'valibot';
import { add, ConfigError, StateError, zeros, type Json, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import { adapterFile, adapterParameter, parameterPath, unbound, type AdapterFile, type AdapterMethod, type Binding } from '@niwaki/peft';
import { choosePlaces, sliceWeight, type Batch, type Weight } from '@niwaki/weights';
import type { Adapter, Model, Site } from '@niwaki/nn';
import { chooseSlices, type SliceBudget, type SliceStrategy } from './choose-slices.ts';
import { arrangeSlices, checkUnits, inOrder, placesOf, sideOf, type SlicedSide, type Slices } from './slices.ts';

export interface S2ftOptions {
  /** Part of the heads whose columns of the attention's output map train, 0 to 1; default 0.052. */
  readonly outputRatio?: number;
  /** Part of the kv heads whose rows of the value map train; default 0. */
  readonly valueRatio?: number;
  /** Part of the MLP's channels whose columns of the down map train; default 0.02. */
  readonly downRatio?: number;
  /** Part of the MLP's channels whose rows of the up map train; default 0. */
  readonly upRatio?: number;
  /**
   * How they are ranked: 'random' (default), by Σ|w| ('weight'), by the mean |activation| that a unit gives ('activation'),
   * by the product of both, or by Σ|gradient| of the loss of next tokens. The last three need `batches`.
   */
  readonly strategy?: SliceStrategy;
  /** Which end of the ranking trains; default 'smallest', which keeps what the model is known for. */
  readonly pick?: 'smallest' | 'largest';
  /** Token batches for the ranking, the caller's; `languageBatch`es for 'gradient'. Not part of the recipe. */
  readonly batches?: readonly Batch[];
  /** Units that other adapters have: with disjoint ones, two adapters together do exactly what each does. */
  readonly exclude?: Slices;
  /** The units themselves, in place of ratios and a ranking. */
  readonly slices?: Slices;
  /**
   * Puts the chosen units next to one another first, by permuting heads and channels of the float model, which computes
   * what it did: slices in place of gathers. Default false. Files name units as the model was loaded, either way.
   */
  readonly permute?: boolean;
}

/** Some columns or rows of a matrix, trained densely. */
export interface S2ftAdapter extends Adapter {
  /** Heads or channels, as the model was loaded. */
  readonly units: readonly number[];
  /** Factor on the change, default 1; not stored in files. */
  strength: number;
}

type Settings = Required<Omit<S2ftOptions, 'batches' | 'exclude' | 'slices'>> & Pick<S2ftOptions, 'batches' | 'exclude' | 'slices'>;

const slot = 's2ft_V';

/**
 * S²FT (Yang et al. 2024, 2412.06289): of the coupled maps of a decoder some heads (columns of o_proj, rows of v_proj) and
 * some channels (columns of down_proj, rows of up_proj) train, densely; the base is frozen, and may be quantized. Trains
 * V, started at 0, [out, s] at columns and [s, in] at rows: 4 bytes an entry, and 4 · (s + in or out) of places. At columns
 * the backward pass keeps s numbers a token, not the whole input. `at` says which kinds of maps take part; ratios count
 * over all of them together. Merging and switching add V at its places, without a product.
 * @throws ConfigError for a ratio outside [0, 1], a selected kind of which nothing would train, a map without heads or channels
 * @example await adapt(model, s2ft({ outputRatio: 0.05, downRatio: 0.02 }), { at: ['o_proj', 'down_proj'] });
 */
export function s2ft(options: S2ftOptions = {}): AdapterMethod {
  const settings = s2ftSettings(options);
  const { slices } = settings;
  const bind = (binding: Pick<Binding, 'name' | 'draw'>): Method =>
    defineMethod({
      kind: 's2ft',
      options: asJson(settings),
      traits: { needs: ['base-values'], gives: ['merge', 'delta'] },
      makes: 'adapter',
      validate: (site, model) => checkSite(site, model, slices),
      plan: async (sites, model) => {
        const chosen = slices ?? (await chooseSlices(model, sites, budgetOf(settings), binding.draw));
        if (settings.permute) await arrangeSlices(model, chosen);
        return { sides: new Map(sites.map((site) => [site, sideOf(model, site.path)])), chosen };
      },
      make: async (site, plan) => {
        const [side, own] = [(plan['sides'] as ReadonlyMap<Site, SlicedSide>).get(site)!, (plan['chosen'] as Slices)[site.path]];
        if (own === undefined) return {};
        // Those of a file are in the order of its columns.
        const units = slices === undefined ? inOrder(side, own) : own;
        return { adapter: sliceAdapter(site, side, units, zeros(shapeOf(site, side, units)), binding.name) };
      },
    });
  const unitsAt = (site: Site): readonly number[] => {
    const units = slices?.[site.path];
    if (units === undefined) throw new StateError(`internal: no slices are named for '${site.path}'`, { path: site.path });
    return units;
  };
  return {
    ...bind(unbound),
    file: s2ftFile,
    targeting: {},
    slots: [slot],
    stored: (site, model) => {
      checkSite(site, model, slices);
      return { [slot]: shapeOf(site, sideOf(model, site.path), unitsAt(site)) };
    },
    rankAt: () => undefined,
    unitOrder: settings.permute ? 'changed' : 'known',
    bind,
    restore: async (site, tensors, { name }, model) => ({
      adapter: sliceAdapter(site, sideOf(model, site.path), unitsAt(site), tensors.get(slot) as Tensor2D, name),
    }),
  };
}

/** `peft_type: S2FT`. For `loadAdapter(model, files, { types: [s2ftFile] })`. */
export const s2ftFile: AdapterFile = adapterFile({
  peftType: 'S2FT',
  // Heads or channels by module path.
  fields: { slices: v.record(v.string(), v.array(v.pipe(v.number(), v.integer(), v.minValue(0)))) },
  make: ({ slices }) => s2ft({ slices }),
  write: ({ sites }) => ({ slices: slicesOf({ sites }) as Json }),
});

/** The units that a set trains: what another one excludes to be disjoint. */
export const slicesOf = ({ sites }: { readonly sites: ReadonlyMap<string, Adapter> }): Slices =>
  Object.fromEntries([...sites].flatMap(([path, adapter]) => (isSlice(adapter) ? [[path, adapter.units]] : [])));

const isSlice = (adapter: Adapter): adapter is S2ftAdapter => adapter.kind === 's2ft';

const strategies: readonly SliceStrategy[] = ['random', 'weight', 'activation', 'weight*activation', 'gradient'];

function s2ftSettings(options: S2ftOptions): Settings {
  const {
    outputRatio = 0.052,
    valueRatio = 0,
    downRatio = 0.02,
    upRatio = 0,
    strategy = 'random',
    pick = 'smallest',
    permute = false,
  } = options;
  for (const [field, ratio] of Object.entries({ outputRatio, valueRatio, downRatio, upRatio })) {
    if (!(ratio >= 0 && ratio <= 1))
      throw new ConfigError(`s2ft: ${field} must be from 0 to 1, got ${String(ratio)}`, { field, given: ratio });
  }
  if (!strategies.includes(strategy))
    throw new ConfigError(`s2ft: strategy must be one of ${strategies.join(', ')}, got ${String(strategy)}`, {
      field: 'strategy',
      given: strategy,
    });
  if (!['smallest', 'largest'].includes(pick))
    throw new ConfigError(`s2ft: pick must be 'smallest' or 'largest', got ${String(pick)}`, { field: 'pick', given: pick });
  if (typeof permute !== 'boolean')
    throw new ConfigError(`s2ft: permute must be true or false, got ${String(permute)}`, { field: 'permute', given: permute });
  if (options.slices === undefined && outputRatio + valueRatio + downRatio + upRatio === 0)
    throw new ConfigError('s2ft: nothing trainable: all ratios are 0', { outputRatio, valueRatio, downRatio, upRatio });
  const needsData = strategy !== 'random' && strategy !== 'weight' && options.slices === undefined;
  if (needsData && !(options.batches !== undefined && options.batches.length > 0))
    throw new ConfigError(`s2ft: strategy '${strategy}' ranks by what the model sees: it needs batches`, { field: 'batches', strategy });
  return { ...options, outputRatio, valueRatio, downRatio, upRatio, strategy, pick, permute };
}

function asJson(settings: Settings): { readonly [name: string]: Json } {
  const { batches: _, slices, permute, ...ranking } = settings;
  return (slices === undefined ? { ...ranking, permute } : { slices, permute }) as unknown as { readonly [name: string]: Json };
}

const budgetOf = ({ outputRatio, valueRatio, downRatio, upRatio, strategy, pick, exclude = {}, batches = [] }: Settings): SliceBudget => ({
  ratios: { output: outputRatio, value: valueRatio, down: downRatio, up: upRatio },
  strategy,
  pick,
  exclude,
  batches,
});

function checkSite({ path }: Site, model: Model, slices: Slices | undefined): void {
  const side = sideOf(model, path);
  const units = slices?.[path];
  if (units !== undefined) checkUnits(path, side, units);
  else if (slices !== undefined)
    throw new ConfigError(`s2ft: 'slices' names nothing of '${path}'`, { path, named: Object.keys(slices), help: "Leave it out of 'at'." });
}

function shapeOf({ weight }: Site, { axis, size }: SlicedSide, units: readonly number[]): [number, number] {
  const [out, width] = weight!.shape;
  return axis === 'columns' ? [out, units.length * size] : [units.length * size, width];
}

/** @param value V, taken over */
function sliceAdapter(site: Site, side: SlicedSide, units: readonly number[], value: Tensor2D, name: string): S2ftAdapter {
  const { path, point, weight } = site;
  const { shape } = weight!;
  const values = adapterParameter(path, name, slot, value, 'values');
  const chosen = choosePlaces(parameterPath(path, name, 's2ft'), placesOf(side, units), side.units * side.size);
  let strength = 1;
  const delta = (): Weight => sliceWeight({ shape, axis: side.axis, values, chosen, scale: strength });
  return {
    kind: 's2ft',
    point,
    parameters: { [slot]: values, ...chosen.parameters },
    units,
    get strength() {
      return strength;
    },
    set strength(given: number) {
      strength = given;
    },
    apply: (x: Tensor, next, call) => add(next(x), delta().apply(x as Tensor2D, call)) as Tensor2D,
    delta,
    startsFrom: 'base',
  };
}
