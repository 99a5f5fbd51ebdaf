import {
  abs,
  add,
  checkOptions,
  clipByValue,
  ConfigError,
  dispose,
  div,
  less,
  matMul,
  max,
  maximum,
  min,
  minimum,
  mul,
  neg,
  reshape,
  round,
  slice,
  stack,
  sub,
  sum,
  tensor1d,
  tidy,
  transpose,
  where,
  type AffineBits,
  type Scalar,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type Tensor3D,
} from '@niwaki/tensor';
import { defineMethod, inputAbsMean, inputGram, roundsFloats, type Method, type Plan, type Window } from '@niwaki/engine';
import { affine, affineGroupSize, disposeWeight, encodeAffine, rowsOfTensor, type Weight } from '@niwaki/weights';
import type { Coupling, Model, Site } from '@niwaki/nn';
import { checkIntegerSite, integerOptions, type IntegerOptions } from './affine-options.ts';
import { couplingOf, divided, divisionOf } from './fold-factors.ts';

export interface AwqOptions extends Pick<IntegerOptions, 'bits' | 'groupSize'> {
  /** Also search how far each group's largest values may be cut; default true. */
  readonly clip?: boolean;
  /**
   * Moves the factors into what comes before: the norm, the up map, or the values where each head has its own. Nothing is
   * left to multiply or to store, and an input without such a source is not scaled, as in the original. Adapters of the
   * float model fit no more. Default false: 1 / s is stored with each matrix.
   */
  readonly fold?: boolean;
}

/** Exponents tried: 0, 1/20, … 19/20. */
const ratios = 20;

/**
 * AWQ (Lin et al. 2023, 2306.00978): columns that see large inputs are multiplied by s before they are rounded, and the
 * input is divided by s. s = mean |x|^ratio, the ratio that moves the outputs on the calibration data least, one for all
 * maps that read the same input; then every group but those of queries and keys is cut where that helps. Asymmetric codes
 * without 0 forced into the range. The factors 1 / s are stored with each matrix, 4 bytes a column, so that any graph and
 * any adapter will do, or folded into the op before it (`fold`).
 *
 * The error is that of the outputs of the linear maps themselves, Σ Δw·(XᵀX)·Δwᵀ, where the original measures behind
 * the attention or the MLP.
 * Memory on the device: 4 · in² bytes for each distinct input of a block, a block's codes beside its floats, and about 6 f32
 * copies of a matrix. Work: 20 · out · in² multiply-adds a matrix, on the device.
 * @throws ConfigError for options out of range or without calibration batches; NumericError for a matrix that is not finite
 * @example await quantize(model, awq({ bits: 4 }), { calibrate: { batches } })
 */
export function awq(options: AwqOptions = {}): Method {
  checkOptions('awq', options, ['bits', 'groupSize', 'clip', 'fold']);
  const { bits, groupSize } = integerOptions('awq', options);
  const { clip = true, fold = false } = options;
  if (typeof clip !== 'boolean') throw new ConfigError(`awq: clip must be true or false, got ${String(clip)}`, { clip });
  if (typeof fold !== 'boolean') throw new ConfigError(`awq: fold must be true or false, got ${String(fold)}`, { fold });

  const visit = async (window: Window, plan: Plan): Promise<void> => {
    const { model, all } = plan as { model: Model; all: ReadonlySet<Site> };
    const statistics = await window.collect(window.groups.flat(), { gram: inputGram(), absMean: inputAbsMean() });
    const scaled: ScaledGroup[] = [];
    for (const sites of window.groups) {
      const { gram, absMean } = statistics.get(sites[0]!)!;
      const rounding = { bits, groupSize: affineGroupSize(groupSize, gram.shape[0], sites[0]!.path) };
      const into = fold ? couplingOf(model, sites, all) : undefined;
      const scales = fold && into === undefined ? undefined : await scalesFor(sites, { gram, absMean, ...rounding });
      scaled.push({ sites, gram, rounding, into, scales });
    }
    const folds = scaled.flatMap(({ into, scales }) => (into === undefined ? [] : [{ coupling: into, factors: scales! }]));
    const division = await divisionOf(model, folds, all);
    const made: { readonly site: Site; readonly weight: Weight }[] = [];
    try {
      for (const { sites, gram, rounding, into, scales } of scaled) {
        for (const site of sites) {
          const cut = clip && !isQueryOrKey(site);
          const rows = division.rows(site);
          made.push({ site, weight: await scaledWeight(site, { gram, scales, rows, cut, stored: into === undefined, ...rounding }) });
        }
      }
    } catch (error) {
      for (const { weight } of made) disposeWeight(weight);
      throw error;
    }
    // What gives an input and what reads it change together.
    division.apply();
    for (const [i, { site, weight }] of made.entries()) window.replace(site, { weight, ...(i === 0 && { undo: division.undo }) });
  };

  return defineMethod({
    kind: 'awq',
    options: { bits, groupSize, clip, fold },
    traits: { ...roundsFloats, gives: ['encode', 'lookup'] },
    makes: 'weight',
    walk: { advance: 'float' },
    validate: (site, model) => {
      checkIntegerSite(site, groupSize);
      if (!fold) return;
      refuseAdapters(model);
      refuseSteps(site);
    },
    plan: async (sites, model) => ({ model, all: new Set(sites) }),
    visit,
    make: async ({ path }) => {
      throw new ConfigError(`awq rounds a block at a time and cannot make '${path}' alone`, { path });
    },
  });
}

interface Rounding {
  readonly bits: AffineBits;
  readonly groupSize: number;
}

/** Sites with one input, and what its columns are multiplied by. */
interface ScaledGroup {
  readonly sites: readonly Site[];
  readonly gram: Tensor2D;
  readonly rounding: Rounding;
  /** Where the factors are folded into. */
  readonly into: Coupling | undefined;
  readonly scales: Float32Array | undefined;
}

// Adapters read and change the very tensors that folding divides.
function refuseAdapters({ adapters }: Model): void {
  if (adapters.size === 0) return;
  const names = [...adapters.keys()];
  throw new ConfigError(`awq: fold changes what the maps of a block read, which the adapters ${names.join(', ')} stand on`, {
    field: 'fold',
    names,
    help: 'Merge them for good, or leave fold away.',
  });
}

function refuseSteps({ path, input }: Site): void {
  if (input?.per !== 'tensor') return;
  throw new ConfigError(`awq: fold changes what '${path}' is given, which is rounded in a step that was measured before`, {
    field: 'fold',
    path,
    help: 'Round activations after awq, or per token.',
  });
}

async function scalesFor(
  sites: readonly Site[],
  options: Rounding & { readonly gram: Tensor2D; readonly absMean: Tensor1D },
): Promise<Float32Array> {
  const matrices = sites.map(({ weight }) => weight!.dense());
  try {
    return (await searchScales(matrices, options)).scales;
  } finally {
    dispose(matrices);
  }
}

// The scores of attention are their products: what is cut there is not averaged away.
const isQueryOrKey = ({ path }: Site): boolean => /^(q_|k_|query|key|Wqkv)/.test(path.slice(path.lastIndexOf('.') + 1));

/** W through AWQ's codes and back, on the device: [rows, groupSize], a group a row. */
function throughCodes(groups: Tensor2D, bits: AffineBits): Tensor2D {
  const top = 2 ** bits - 1;
  const [least, most] = [min(groups, 1, true), max(groups, 1, true)];
  const step = div(maximum(sub(most, least), 1e-5), top);
  const zero = clipByValue(neg(round(div(least, step))), 0, top);
  return mul(sub(clipByValue(add(round(div(groups, step)), zero), 0, top), zero), step);
}

export interface ScaleSearch {
  /** Per column of the input; 1 everywhere for ratio 0. */
  readonly scales: Float32Array;
  readonly ratio: number;
  /** Mean squared output error of each ratio tried, over rows of the input and outputs. */
  readonly losses: readonly number[];
}

/**
 * The factors that move the outputs of matrices with one input least.
 * @param matrices each [out, in]
 * @param options `gram` the mean of xᵀx, [in, in]; `absMean` that of |x|, [in]
 */
export async function searchScales(
  matrices: readonly Tensor2D[],
  { gram, absMean, bits, groupSize }: Rounding & { readonly gram: Tensor2D; readonly absMean: Tensor1D },
): Promise<ScaleSearch> {
  const size = await absMean.data();
  const candidates = Array.from({ length: ratios }, (_, k) => scalesOf(size, k / ratios));
  const outputs = matrices.reduce((total, { shape }) => total + shape[0], 0);
  const errors: Scalar[] = [];
  for (const scales of candidates) {
    errors.push(
      tidy(() => {
        const s = tensor1d(scales);
        const each = matrices.map((w) => {
          const moved = sub(div(reshape(throughCodes(reshape(mul(w, s), [-1, groupSize]), bits), w.shape), s), w) as Tensor2D;
          return sum(mul(matMul(moved, gram), moved)) as Scalar;
        });
        return div(
          each.reduce((total, error) => add(total, error)),
          outputs,
        ) as Scalar;
      }),
    );
  }
  const stacked = tidy(() => stack(errors));
  dispose(errors);
  const losses = [...(await stacked.data())];
  stacked.dispose();
  // None is least where they are not numbers: the matrix will be refused, by name, when it is encoded.
  const chosen = Math.max(0, losses.indexOf(Math.min(...losses)));
  return { scales: candidates[chosen]!, ratio: chosen / ratios, losses };
}

function scalesOf(size: ArrayLike<number>, ratio: number): Float32Array {
  const scales = Float32Array.from(size, (a) => Math.max(a ** ratio, 1e-4));
  let [least, most] = [Infinity, 0];
  for (const s of scales) {
    if (s < least) least = s;
    if (s > most) most = s;
  }
  const middle = Math.sqrt(least * most);
  return scales.map((s) => s / middle);
}

interface ScaledWeightOptions extends Rounding {
  readonly gram: Tensor2D;
  /** Of the columns; absent: 1. */
  readonly scales: Float32Array | undefined;
  /** What the rows are divided by first, for the maps that read them. */
  readonly rows: Float32Array | undefined;
  readonly cut: boolean;
  /** Whether 1 / s is kept with the matrix. */
  readonly stored: boolean;
}

async function scaledWeight({ path, weight }: Site, options: ScaledWeightOptions): Promise<Weight> {
  const { gram, scales, rows, cut, stored, bits, groupSize } = options;
  const [out, width] = weight!.shape;
  const scaled = tidy(() => {
    const dense = weight!.dense();
    const matrix = rows === undefined ? dense : divided(dense, rows);
    const s = scales && tensor1d(scales);
    const w = s === undefined ? matrix : (mul(matrix, s) as Tensor2D);
    if (!cut) return w;
    const seen = s === undefined ? gram : (div(div(gram, s), reshape(s, [width, 1])) as Tensor2D);
    return cutGroups(w, seen, { bits, groupSize });
  });
  try {
    const grid = { bits, groupSize, grid: 'awq' } as const;
    const parts = await encodeAffine(`${path}.weight`, [out, width], rowsOfTensor(scaled), grid);
    const factors = stored && scales?.some((s) => s !== 1) ? { inputScales: scales.map((s) => 1 / s) } : {};
    return affine(path, [out, width], { ...parts, ...factors }, grid);
  } finally {
    scaled.dispose();
  }
}

/** Each group within ± the bound, of 1, 0.95, … 0.55 of its largest value, that moves its part of the output least. */
function cutGroups(w: Tensor2D, gram: Tensor2D, { bits, groupSize }: Rounding): Tensor2D {
  const [out, width] = w.shape;
  const groups = width / groupSize;
  // [groups, out, groupSize]: a matrix a group, beside the second moments of the group's own columns.
  const arranged = transpose(reshape(w, [out, groups, groupSize]), [1, 0, 2]) as Tensor3D;
  const moments = stack(
    Array.from({ length: groups }, (_, g) => slice(gram, [g * groupSize, g * groupSize], [groupSize, groupSize])),
  ) as Tensor3D;
  const largest = max(abs(arranged), 2, true);
  let best: { bound: Tensor; error: Tensor } | undefined;
  for (let i = 0; i < 10; i++) {
    const bound = mul(largest, 1 - i / 20);
    const inside = within(arranged, bound);
    const moved = sub(reshape(throughCodes(reshape(inside, [-1, groupSize]), bits), arranged.shape), arranged) as Tensor3D;
    const error = sum(mul(matMul(moved, moments), moved), 2, true);
    const better = best === undefined ? undefined : less(error, best.error);
    best = better === undefined ? { bound, error } : { bound: where(better, bound, best!.bound), error: minimum(error, best!.error) };
  }
  return reshape(transpose(within(arranged, best!.bound), [1, 0, 2]), [out, width]) as Tensor2D;
}

const within = (w: Tensor, bound: Tensor): Tensor => maximum(minimum(w, bound), neg(bound));
