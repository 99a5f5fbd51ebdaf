import * as v from 'valibot';
import {
  add,
  checkFlag,
  checkOptions,
  ConfigError,
  denseParameter,
  StateError,
  sub,
  tidy,
  zeros,
  type Json,
  type Tensor,
  type Tensor2D,
  type Traits,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import {
  adapterFile,
  adapterParameter,
  parameterPath,
  unbound,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type PortableForm,
  type RewritingAdapter,
} from '@niwaki/peft';
import { choosePlaces, sliceWeight, trainedSlice, type Batch, type Weight } from '@niwaki/weights';
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
  /**
   * Trains the slices inside the stored matrices, which must be floats: no product more than the base's. Halves become f32.
   * Then decay shrinks the slice itself, such a set has its sites for itself, and its strength cannot be changed. Default
   * false: V is trained beside the matrix.
   */
  readonly inPlace?: boolean;
}

/** Some columns or rows of a matrix, trained densely. */
export interface S2ftAdapter extends Adapter {
  /** Heads or channels, as the model was loaded. */
  readonly units: readonly number[];
  /** Factor on the change, default 1; not stored in files. Absent where they train in place. */
  strength?: number;
}

/** Slices that train inside the stored matrix. */
interface InPlaceAdapter extends S2ftAdapter, RewritingAdapter {
  /** What training has added to them: a new tensor. */
  change(): Tensor2D;
}

type Settings = Required<Omit<S2ftOptions, 'batches' | 'exclude' | 'slices'>> & Pick<S2ftOptions, 'batches' | 'exclude' | 'slices'>;

const slot = 's2ft_V';

/**
 * S²FT (Yang et al. 2024, 2412.06289): of the coupled maps of a decoder some heads (columns of o_proj, rows of v_proj) and
 * some channels (columns of down_proj, rows of up_proj) train, densely; the base is frozen, and may be quantized. Trains
 * V, started at 0, [out, s] at columns and [s, in] at rows: 4 bytes an entry, and 4 · (s + in or out) of places. At columns
 * the backward pass keeps s numbers a token, not the whole input. `at` says which kinds of maps take part; ratios count
 * over all of them together. Merging and switching add V at its places, without a product.
 *
 * `inPlace`: 8 bytes an entry beside the matrix, for the slice as the tape knows it and as it was, and each update makes
 * the matrix anew, up to 8 bytes an entry of one matrix while it lasts. Read without the set, the matrix is what it was.
 * Files are the same, and so is what they do. `form: 'native'` saves the slices themselves, for going on bit for bit.
 * @throws ConfigError for a ratio outside [0, 1], a selected kind of which nothing would train, a map without heads or
 * channels; in place, for codes and pruned matrices
 * @example await adapt(model, s2ft({ outputRatio: 0.05, downRatio: 0.02 }), { at: ['o_proj', 'down_proj'] });
 */
export function s2ft(options: S2ftOptions = {}): AdapterMethod {
  const settings = s2ftSettings(options);
  const { slices } = settings;
  const bind = (binding: Pick<Binding, 'name' | 'draw'>): Method =>
    defineMethod({
      kind: 's2ft',
      ...(settings.inPlace && { title: 's2ft in place' }),
      options: asJson(settings),
      traits: settings.inPlace ? inPlaceTraits : { needs: ['base-values'], gives: ['merge', 'delta'] },
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
        if (settings.inPlace) return inPlaceAdapter(site, side, units, { name: binding.name });
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
    ...(settings.inPlace && { rewrites: 'slices', repeatable: true, portable: added }),
    bind,
    restore: async (site, tensors, { name }, model) => {
      const [side, units, value] = [sideOf(model, site.path), unitsAt(site), tensors.get(slot) as Tensor2D];
      if (settings.inPlace) return inPlaceAdapter(site, side, units, { name, value });
      return { adapter: sliceAdapter(site, side, units, value, name) };
    },
  };
}

const inPlaceTraits: Traits = {
  needs: ['floats', 'base-values'],
  // Training would fill them.
  forbids: ['zeros'],
  claims: ['base-values'],
  gives: ['merge', 'delta', 'floats', 'encode'],
  help: {
    floats: 'Leave inPlace away: the slices then train beside the codes.',
    zeros: 'Leave inPlace away: the slices then train beside the matrix.',
    'base-values': 'Leave inPlace away: sets of slices that train beside the matrix share it.',
  },
};

/** What was trained in place as what is added to the base. */
const added: PortableForm = {
  method: (set) => s2ft({ slices: slicesOf(set) }),
  tensors: (adapter) => new Map([[slot, { shape: adapter.parameters[slot]!.shape, values: () => changeOf(adapter as InPlaceAdapter) }]]),
};

async function changeOf(adapter: InPlaceAdapter): Promise<Float32Array> {
  const change = adapter.change();
  try {
    return (await change.data()) as Float32Array;
  } finally {
    change.dispose();
  }
}

/** `peft_type: S2FT`. For `loadAdapter(model, files, { types: [s2ftFile] })`. */
export const s2ftFile: AdapterFile = adapterFile({
  peftType: 'S2FT',
  fields: {
    // Heads or channels by module path.
    slices: v.record(v.string(), v.array(v.pipe(v.number(), v.integer(), v.minValue(0)))),
    in_place: v.nullish(v.boolean(), false),
  },
  make: ({ slices, in_place: inPlace }) => s2ft({ slices, inPlace }),
  write: ({ sites, method: { options } }) => ({
    slices: slicesOf({ sites }) as Json,
    ...((options as Pick<S2ftOptions, 'inPlace'>).inPlace && { in_place: true }),
  }),
});

/** The units that a set trains: what another one excludes to be disjoint. */
export const slicesOf = ({ sites }: { readonly sites: ReadonlyMap<string, Adapter> }): Slices =>
  Object.fromEntries([...sites].flatMap(([path, adapter]) => (isSlice(adapter) ? [[path, adapter.units]] : [])));

const isSlice = (adapter: Adapter): adapter is S2ftAdapter => adapter.kind === 's2ft';

const strategies: readonly SliceStrategy[] = ['random', 'weight', 'activation', 'weight*activation', 'gradient'];

function s2ftSettings(options: S2ftOptions): Settings {
  checkOptions('s2ft', options, [
    'outputRatio',
    'valueRatio',
    'downRatio',
    'upRatio',
    'strategy',
    'pick',
    'batches',
    'exclude',
    'slices',
    'permute',
    'inPlace',
  ]);
  const {
    outputRatio = 0.052,
    valueRatio = 0,
    downRatio = 0.02,
    upRatio = 0,
    strategy = 'random',
    pick = 'smallest',
    permute = false,
    inPlace = false,
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
  for (const [field, value] of Object.entries({ permute, inPlace })) checkFlag('s2ft', field, value);
  if (options.slices === undefined && outputRatio + valueRatio + downRatio + upRatio === 0)
    throw new ConfigError('s2ft: nothing trainable: all ratios are 0', { outputRatio, valueRatio, downRatio, upRatio });
  const needsData = strategy !== 'random' && strategy !== 'weight' && options.slices === undefined;
  if (needsData && !(options.batches !== undefined && options.batches.length > 0))
    throw new ConfigError(`s2ft: strategy '${strategy}' ranks by what the model sees: it needs batches`, { field: 'batches', strategy });
  return { ...options, outputRatio, valueRatio, downRatio, upRatio, strategy, pick, permute, inPlace };
}

function asJson(settings: Settings): { readonly [name: string]: Json } {
  const { batches: _, slices, permute, inPlace, ...ranking } = settings;
  const named = slices === undefined ? { ...ranking, permute } : { slices, permute };
  return { ...named, ...(inPlace && { inPlace }) } as unknown as { readonly [name: string]: Json };
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

/** @param options `value`: the slice itself, where a file has it; taken over */
function inPlaceAdapter(
  { path, point, weight }: Site,
  side: SlicedSide,
  units: readonly number[],
  { name, value }: { readonly name: string; readonly value?: Tensor2D },
): { readonly adapter: InPlaceAdapter; readonly weight: Weight } {
  const { shape } = weight!;
  const { axis } = side;
  const matrix = denseParameter(`${path}.weight`, weight!.dense(), { role: 'matrix' });
  const chosen = choosePlaces(parameterPath(path, name, 's2ft'), placesOf(side, units), side.units * side.size);
  const held = trainedSlice(matrix, { axis, chosen, path: parameterPath(path, name, slot), ...(value && { value }) });
  const { slice, initial } = held;
  return {
    weight: held,
    adapter: {
      kind: 's2ft',
      point,
      parameters: { [slot]: slice },
      units,
      apply: (x, _, call, { bias }) => {
        const y = held.trained(x as Tensor2D, call);
        return bias === undefined ? y : (add(y, call.value(bias)) as Tensor2D);
      },
      delta: () => sliceWeight({ shape, axis, values: slice, since: initial, chosen }),
      merge: async () => ({ matrix: held.now() }),
      change: () => tidy(() => sub(slice.read(), initial.read()) as Tensor2D),
      original: (base) => base.dense(),
      startsFrom: 'rewritten',
    },
  };
}
