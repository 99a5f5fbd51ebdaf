import {
  abs,
  add,
  ConfigError,
  createDraw,
  dispose,
  distinctNumbers,
  keep,
  plainView,
  sum,
  tidy,
  type Draw,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { blockwiseBackprop, causalLM, collectInputs, inputAbsMean } from '@niwaki/engine';
import type { Batch } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import { positions, sideOf, type SlicedSide, type SliceRole, type Slices } from './slices.ts';

/** How heads and channels are ranked. */
export type SliceStrategy = 'random' | 'weight' | 'activation' | 'weight*activation' | 'gradient';

export interface SliceBudget {
  /** Part of each kind that trains, counted over all selected maps of the kind. */
  readonly ratios: Readonly<Record<SliceRole, number>>;
  readonly strategy: SliceStrategy;
  readonly pick: 'smallest' | 'largest';
  /** Never chosen. */
  readonly exclude: Slices;
  readonly batches: readonly Batch[];
}

interface Candidate {
  readonly site: Site;
  readonly side: SlicedSide;
  readonly unit: number;
}

const optionOf: Readonly<Record<SliceRole, string>> = { output: 'outputRatio', value: 'valueRatio', down: 'downRatio', up: 'upRatio' };

/**
 * The heads and channels that train: floor(ratio · units) of all selected maps of a kind together, so that layers get
 * different numbers, some none.
 * @throws ConfigError where a kind is selected of which the ratio leaves nothing
 */
export async function chooseSlices(model: Model, sites: readonly Site[], budget: SliceBudget, draw: Draw): Promise<Slices> {
  const { ratios, strategy, pick, exclude } = budget;
  const sides = new Map(sites.map((site) => [site, sideOf(model, site.path)]));
  const places = new Map([...sides].map(([site, side]) => [site, positions(side)]));
  const scores = strategy === 'random' ? undefined : await scoresOf(model, sides, budget);
  const chosen = new Map<string, number[]>();
  for (const role of Object.keys(optionOf) as SliceRole[]) {
    const own = [...sides].filter(([, side]) => side.role === role);
    const units = own.reduce((total, [, side]) => total + side.units, 0);
    if (units === 0) continue;
    const count = Math.floor(ratios[role] * units);
    const free = own.flatMap(([site, side]) =>
      Array.from({ length: side.units }, (_, unit): Candidate => ({ site, side, unit })).filter(
        ({ unit }) => !exclude[site.path]?.includes(unit),
      ),
    );
    checkCount(role, ratios[role], { count, units, free: free.length });
    const score = ({ site, unit }: Candidate): number => scores!.get(site)![places.get(site)!(unit)]!;
    const sign = pick === 'smallest' ? 1 : -1;
    const picked =
      scores === undefined
        ? Array.from(distinctNumbers(free.length, count, draw.at(`${role}#s2ft`)), (i) => free[i]!)
        : [...free].sort((a, b) => sign * (score(a) - score(b))).slice(0, count);
    for (const { site, unit } of picked) chosen.set(site.path, [...(chosen.get(site.path) ?? []), unit]);
  }
  return Object.fromEntries(
    [...sides.keys()].flatMap(({ path }) => (chosen.has(path) ? [[path, chosen.get(path)!.sort((a, b) => a - b)]] : [])),
  );
}

function checkCount(role: SliceRole, ratio: number, { count, units, free }: { count: number; units: number; free: number }): void {
  const field = optionOf[role];
  if (count === 0)
    throw new ConfigError(`s2ft: nothing trainable: ${field} ${ratio} of ${units} is less than one, and 'at' names such maps`, {
      field,
      given: ratio,
      units,
      help: `Use ${field} >= ${Math.ceil(1e4 / units) / 1e4}, or leave these maps out of 'at'.`,
    });
  if (count <= free) return;
  throw new ConfigError(`s2ft: ${field} ${ratio} takes ${count} of ${units}, and 'exclude' leaves ${free}`, {
    field,
    given: ratio,
    units,
    free,
  });
}

/** One number a unit of each map, in the order that the model has them in. */
async function scoresOf(
  model: Model,
  sides: ReadonlyMap<Site, SlicedSide>,
  { strategy, batches }: SliceBudget,
): Promise<ReadonlyMap<Site, ArrayLike<number>>> {
  if (strategy === 'gradient') return gradients(model, sides, batches);
  const weights = strategy === 'activation' ? undefined : await norms(sides);
  const inputs = strategy === 'weight' ? undefined : await activations(model, sides, batches);
  if (weights === undefined || inputs === undefined) return (weights ?? inputs)!;
  return new Map([...sides.keys()].map((site) => [site, Array.from(weights.get(site)!, (norm, unit) => norm * inputs.get(site)![unit]!)]));
}

/** Sums over the rows or columns of each unit. */
const byUnit = (values: ArrayLike<number>, units: number): Float64Array => {
  const size = values.length / units;
  const sums = new Float64Array(units);
  for (let i = 0; i < values.length; i++) sums[Math.floor(i / size)]! += values[i]!;
  return sums;
};

const sumsOf = (matrix: Tensor2D, axis: SlicedSide['axis']): Tensor1D => sum(abs(matrix), axis === 'columns' ? 0 : 1);

/** Σ|w| over the rows or columns of a unit. */
async function norms(sides: ReadonlyMap<Site, SlicedSide>): Promise<Map<Site, Float64Array>> {
  const found = new Map<Site, Float64Array>();
  for (const [site, { axis, units }] of sides) {
    const sums = tidy(() => sumsOf(site.weight!.dense(), axis));
    found.set(site, byUnit(await sums.data(), units));
    sums.dispose();
  }
  return found;
}

/** Mean |x| of what a unit gives to the map that reads it, summed over its columns. */
async function activations(
  model: Model,
  sides: ReadonlyMap<Site, SlicedSide>,
  batches: readonly Batch[],
): Promise<Map<Site, Float64Array>> {
  const readerOf = ({ coupling: { readers } }: SlicedSide): Site => model.sites((site) => site.path === readers[0])[0]!;
  const readers = [...new Set([...sides.values()].map(readerOf))];
  const { of, release } = await collectInputs(model, readers, { mean: inputAbsMean() }, { batches, kind: 's2ft' });
  try {
    const found = new Map<Site, Float64Array>();
    // Consecutive units of the reader are what one unit of the source serves.
    for (const [site, side] of sides) found.set(site, byUnit(await of.get(readerOf(side))!.mean.data(), side.units));
    return found;
  } finally {
    release();
  }
}

/** Σ|gradient| over the rows or columns of a unit, each batch's loss taken by itself. */
async function gradients(model: Model, sides: ReadonlyMap<Site, SlicedSide>, batches: readonly Batch[]): Promise<Map<Site, Float64Array>> {
  const totals = new Map<Parameter, Tensor>();
  const sideBy = new Map<Parameter, SlicedSide>();
  for (const [{ path, weight }, side] of sides) {
    if (weight!.matrix === undefined)
      throw new ConfigError(`s2ft: strategy 'gradient' needs float weights, '${path}' holds ${weight!.kind} codes`, {
        path,
        kind: weight!.kind,
        help: "Use strategy 'random', 'weight' or 'activation'.",
      });
    sideBy.set(weight!.matrix, side);
  }
  const objective = causalLM();
  try {
    for (const [i, batch] of batches.entries()) {
      const loss = await blockwiseBackprop().estimate(
        {
          model,
          objective,
          batch,
          wrt: new Set(sideBy.keys()),
          view: plainView,
          at: { attempt: 0, phaseStep: 0, micro: i, pass: 0 },
          draw: createDraw(0, 0),
          scale: 1 / objective.weight(batch),
        },
        {
          push: (parameter, gradient) => {
            if (gradient.kind !== 'dense') throw new ConfigError(`internal: '${parameter.path}' has a gradient of kind ${gradient.kind}`);
            const before = totals.get(parameter);
            const sums = tidy(() => sumsOf(gradient.value as Tensor2D, sideBy.get(parameter)!.axis));
            totals.set(parameter, keep(before === undefined ? sums : add(before, sums)));
            dispose(before === undefined ? [gradient.value] : [gradient.value, before, sums]);
          },
        },
      );
      loss.dispose();
    }
    const found = new Map<Site, Float64Array>();
    for (const [site, { units }] of sides) found.set(site, byUnit(await totals.get(site.weight!.matrix!)!.data(), units));
    return found;
  } finally {
    dispose([...totals.values()]);
  }
}
