import * as v from 'valibot';
import {
  add,
  checkOptions,
  ConfigError,
  distinctNumbers,
  FormatError,
  tensor1d,
  zeros,
  type Json,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method, type Participant } from '@niwaki/engine';
import {
  adapterFile,
  layerNumbers,
  moduleNames,
  parameterPath,
  unbound,
  wholeCount,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type TargetOptions,
} from '@niwaki/peft';
import { checkPlaces, flatPlaces, packPlaces, placedParameters, sparseDelta, type SparseDeltaParts, type Weight } from '@niwaki/weights';
import type { Adapter, AdapterSet, Model, Site } from '@niwaki/nn';
import { reselection, type ReselectionOptions } from './reselection.ts';

export interface SpielOptions
  extends Partial<ReselectionOptions>, Pick<TargetOptions, 'layersToTransform' | 'layersPattern' | 'modulesToSave'> {
  /** Entries that train, as a part of all parameters of the model, those of other modules included: (0, 1]. Default 0.01. */
  readonly density?: number;
  /** Their number, in place of `density`. Each matrix gets its part of it by size, rounded down. */
  readonly numTunable?: number;
}

/** Some entries of a matrix, trained: indices and values. */
export interface SpielAdapter extends Adapter, SparseDeltaParts {
  /** [out, in] of the matrix. */
  readonly shape: readonly [number, number];
  /** The change, one weight for as long as the adapter lives. */
  delta(): Weight;
}

type Settings = ReselectionOptions & Omit<SpielOptions, keyof ReselectionOptions>;

const slots = { values: 'sft_delta.values', index: 'sft_delta.indices' } as const;

/**
 * SpIEL (Ansell et al. 2024, 2401.16405): of each linear map some single entries train, and which ones is chosen anew as
 * training goes: those that changed least since they were chosen give their places to those that promise most. 'AG': the
 * largest gradients, summed over some steps; with `agedAdamw`, whose moments a new entry begins with. 'MA': the largest
 * products of what SM3 remembers of rows and columns; with `sm3`. The base is frozen and may be quantized.
 *
 * Trains values that begin at 0. `train` brings the choosing along; a step of `createStep` is given
 * `participants: [spielParticipant(set)]`. Memory of N entries: 8 · N bytes of indices and values, 4 · N of gradients, 12 · N
 * of state with AG, and 16 · N more while it looks for candidates; or 4 bytes a row and a column with MA. One matrix at a
 * time is built, for its product and for its gradient.
 * @throws ConfigError for options out of range, more entries than the targets have, or too few for one of them
 * @example await adapt(model, spiel({ density: 0.01 }), { at: 'all-linear' });
 */
export function spiel(options: SpielOptions = {}): AdapterMethod {
  const settings = spielSettings(options);
  const { layersToTransform, layersPattern, modulesToSave } = settings;
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method =>
    defineMethod({
      kind: 'spiel',
      options: settings as unknown as { readonly [name: string]: Json },
      traits: { needs: ['base-values'], gives: ['merge', 'delta'] },
      makes: 'adapter',
      validate: checkSite,
      plan: async (sites, model) => ({ counts: budgetOf(settings, sites, model) }),
      make: async (site, { counts }) => {
        const { shape } = site.weight!;
        const count = (counts as ReadonlyMap<Site, number>).get(site)!;
        const address = draw.at(`${parameterPath(site.path, name, slots.index)}#init`);
        const index = tensor1d(packPlaces(distinctNumbers(shape[0] * shape[1], count, address), shape), 'int32');
        return { adapter: sparseAdapter(site, { values: zeros([count]), index }, name) };
      },
    });
  return {
    ...bind(unbound),
    targeting: {
      ...(layersToTransform !== undefined && { layersToTransform }),
      ...(layersPattern !== undefined && { layersPattern }),
      ...(modulesToSave !== undefined && { modulesToSave }),
    },
    slots: Object.values(slots),
    integers: { [slots.index]: async (adapter) => flatOf(adapter as SpielAdapter) },
    stored: () => ({ [slots.values]: ['rank'], [slots.index]: ['rank'] }),
    rankAt: () => undefined,
    file: sftFile,
    bind,
    restore: async (site, tensors, { name }) => {
      const [values, flat] = [tensors.get(slots.values) as Tensor1D, tensors.get(slots.index) as Tensor1D];
      const index = tensor1d(packPlaces(checkedPlaces(await flat.data(), site), site.weight!.shape), 'int32');
      const adapter = sparseAdapter(site, { values, index }, name);
      flat.dispose();
      return { adapter };
    },
    participant: spielParticipant,
  };
}

/**
 * What chooses a set's entries anew while it trains: goes into `participants` where `createStep` is used, which also has to be told
 * the number of steps; `train` does both by itself.
 */
export const spielParticipant = (set: AdapterSet): Participant =>
  reselection(
    [...set.sites.values()].filter((adapter): adapter is SpielAdapter => adapter.kind === 'spiel'),
    set.method.options as Settings,
  );

const algorithms = { AG: 'rigl', MA: 'sm3' } as const;

/** `peft_type: SFT`, as the authors' fork of PEFT writes it. For `loadAdapter(model, files, { types: [sftFile] })`. */
export const sftFile: AdapterFile = adapterFile({
  peftType: 'SFT',
  fields: {
    density: v.nullish(v.number()),
    num_tunable_weights: v.nullish(wholeCount),
    selection_algorithm: v.nullish(v.picklist(['rigl', 'sm3']), 'rigl'),
    reselection_steps: v.nullish(wholeCount),
    selection_accumulation_steps: v.nullish(wholeCount),
    initial_reselection_rate: v.nullish(v.number()),
    reselection_rate_policy: v.nullish(v.picklist(['linear', 'cosine'])),
    modules_to_save: v.nullish(v.array(v.string())),
    layers_to_transform: v.nullish(layerNumbers),
    layers_pattern: v.nullish(moduleNames),
  },
  // The tensors tell; type and counts are for the authors' loader.
  ignored: ['num_deltas', 'dtype'],
  make: (config) => {
    const given = {
      density: config.num_tunable_weights == null ? config.density : null,
      numTunable: config.num_tunable_weights,
      reselectionSteps: config.reselection_steps,
      accumulationSteps: config.selection_accumulation_steps,
      initialRate: config.initial_reselection_rate,
      policy: config.reselection_rate_policy,
      modulesToSave: config.modules_to_save,
      layersToTransform: config.layers_to_transform,
      layersPattern: config.layers_pattern,
    };
    const algorithm = config.selection_algorithm === 'sm3' ? 'MA' : 'AG';
    return spiel({ algorithm, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value != null)) } as SpielOptions);
  },
  write: ({ method, sites }) => {
    const settings = method.options as unknown as Settings;
    return {
      density: settings.density ?? null,
      num_tunable_weights: settings.numTunable ?? null,
      num_deltas: Object.fromEntries([...sites].flatMap(([path, { parameters }]) => countOf(path, parameters[slots.values]?.shape))),
      selection_algorithm: algorithms[settings.algorithm],
      reselection_steps: settings.reselectionSteps,
      selection_accumulation_steps: settings.accumulationSteps,
      initial_reselection_rate: settings.initialRate,
      reselection_rate_policy: settings.policy,
      dtype: 'float32',
      modules_to_save: (settings.modulesToSave as Json | undefined) ?? null,
      layers_to_transform: (settings.layersToTransform as Json | undefined) ?? null,
      layers_pattern: (settings.layersPattern as Json | undefined) ?? null,
    };
  },
});

const countOf = (path: string, shape: readonly number[] | undefined): readonly (readonly [string, number])[] =>
  shape === undefined ? [] : [[path, shape[0]!]];

const range = (field: string, given: unknown, expected: string): ConfigError =>
  new ConfigError(`spiel: ${field} must be ${expected}, got ${String(given)}`, { field, given, expected });

function spielSettings(options: SpielOptions): Settings {
  checkOptions('spiel', options, [
    'density',
    'numTunable',
    'algorithm',
    'reselectionSteps',
    'accumulationSteps',
    'initialRate',
    'policy',
    'layersToTransform',
    'layersPattern',
    'modulesToSave',
  ]);
  const { algorithm = 'AG', reselectionSteps = 20, accumulationSteps = 5, initialRate = 0.2, policy = 'linear', numTunable } = options;
  const density = options.density ?? (numTunable === undefined ? 0.01 : undefined);
  if (density !== undefined && numTunable !== undefined)
    throw new ConfigError(`spiel: give density (${density}) or numTunable (${numTunable}), not both`, { density, numTunable });
  if (density !== undefined && !(density > 0 && density <= 1)) throw range('density', density, 'in (0, 1]');
  if (numTunable !== undefined && !(Number.isInteger(numTunable) && numTunable >= 1))
    throw range('numTunable', numTunable, 'a whole number of at least 1');
  if (!Object.hasOwn(algorithms, algorithm)) throw range('algorithm', algorithm, "'AG' or 'MA'");
  if (!(Number.isInteger(accumulationSteps) && accumulationSteps >= 1))
    throw range('accumulationSteps', accumulationSteps, 'a whole number of at least 1');
  if (!(Number.isInteger(reselectionSteps) && reselectionSteps > accumulationSteps))
    throw range('reselectionSteps', reselectionSteps, `a whole number above accumulationSteps (${accumulationSteps})`);
  if (!(initialRate > 0 && initialRate <= 1)) throw range('initialRate', initialRate, 'in (0, 1]');
  if (policy !== 'linear' && policy !== 'cosine') throw range('policy', policy, "'linear' or 'cosine'");
  const { layersToTransform, layersPattern, modulesToSave } = options;
  const given = { density, numTunable, layersToTransform, layersPattern, modulesToSave };
  return {
    algorithm,
    reselectionSteps,
    accumulationSteps,
    initialRate,
    policy,
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
  };
}

function checkSite({ path, point, weight }: Site): void {
  if (point !== 'linear' || weight === undefined)
    throw new ConfigError(`spiel trains entries of linear maps, '${path}' is a ${point}`, { path, point, help: 'Leave it out of `at`.' });
  checkPlaces(weight.shape, path);
}

/** Entries of each matrix: its part of the budget, by size. */
function budgetOf({ density, numTunable }: Settings, sites: readonly Site[], model: Model): ReadonlyMap<Site, number> {
  const total = numTunable ?? Math.floor(density! * countParameters(model));
  const sizes = sites.map(({ weight }) => weight!.shape[0] * weight!.shape[1]);
  const all = sizes.reduce((sum, size) => sum + size, 0);
  if (total < 1 || total > all) {
    throw new ConfigError(`spiel: ${total} entries shall train, the ${sites.length} targets have ${all}`, {
      given: total,
      expected: `1 to ${all}`,
      help: total < 1 ? 'Raise density.' : 'Lower density or numTunable, or widen `at`.',
    });
  }
  return new Map(
    sites.map((site, i) => {
      const count = Math.floor((total * sizes[i]!) / all);
      if (count >= 1) return [site, count];
      throw new ConfigError(`spiel: of ${total} entries none is left for '${site.path}', which has ${sizes[i]} of ${all}`, {
        path: site.path,
        given: total,
        help: 'Raise density or numTunable, or leave it out of `at`.',
      });
    }),
  );
}

/** Numbers of the model as it would be in floats, each matrix once; no adapter's. */
function countParameters(model: Model): number {
  const weights = [...new Set(model.stages().flatMap(({ sites }) => sites.flatMap(({ weight }) => weight ?? [])))];
  const parts = new Set(weights.flatMap(({ parts: own }) => Object.values(own)));
  for (const { sites, replaced } of model.adapters.values()) {
    for (const { parameters } of sites.values()) for (const parameter of Object.values(parameters)) parts.add(parameter);
    for (const parameter of replaced.values()) parts.add(parameter);
  }
  const others = [...new Set(model.parameters().values())].filter((parameter) => !parts.has(parameter));
  return [...weights, ...others].reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
}

/** Flat places of a file. @throws FormatError where they are no distinct places of the matrix */
function checkedPlaces(flat: ArrayLike<number>, { path, weight }: Site): Int32Array {
  const [out, width] = weight!.shape;
  const places = Int32Array.from(flat);
  const wrong = places.find((place) => place < 0 || place >= out * width);
  if (wrong === undefined && new Set(places).size === places.length) return places;
  throw new FormatError(
    wrong === undefined ? `'${path}' has an index twice` : `'${path}' has no entry ${wrong}: its matrix is [${out}, ${width}]`,
    {
      path,
      shape: weight!.shape,
      ...(wrong !== undefined && { index: wrong }),
    },
  );
}

/** Places of an adapter's entries in the order of its values, row after row. */
const flatOf = async ({ index, shape }: SpielAdapter): Promise<Int32Array> => flatPlaces(await index.read().data(), shape);

/** @param tensors taken over */
function sparseAdapter({ path, point, weight }: Site, tensors: { values: Tensor1D; index: Tensor1D }, name: string): SpielAdapter {
  const { shape } = weight!;
  const paths = { values: parameterPath(path, name, slots.values), index: parameterPath(path, name, slots.index) };
  const { values, index } = placedParameters(paths, shape, tensors);
  const delta = sparseDelta(shape, { values, index });
  return {
    kind: 'spiel',
    point,
    parameters: { [slots.values]: values, [slots.index]: index },
    values,
    index,
    shape,
    apply: (x, next, call) => add(next(x), delta.apply(x as Tensor2D, call)) as Tensor2D,
    delta: () => delta,
    startsFrom: 'base',
  };
}
