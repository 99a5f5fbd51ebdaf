import {
  abs,
  add,
  cast,
  checkFlag,
  clipByValue,
  ConfigError,
  denseParameter,
  div,
  greater,
  greaterEqual,
  less,
  logicalAnd,
  max,
  maximum,
  min,
  minimum,
  mul,
  neg,
  outOfRange,
  reshape,
  round,
  sub,
  sum,
  tensor1d,
  tidy,
  where,
  withGradient,
  zerosLike,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { scaleColumns } from './columns.ts';
import { untracked } from './packed.ts';

export interface ActivationGrid {
  /** Bits of one code: a whole number from 2 to 8. */
  readonly bits: number;
  /** true: 0 in the middle of the codes. false: the code that stands for 0 is chosen, so that one-sided values waste none. */
  readonly symmetric: boolean;
}

/** How rows are rounded that have steps of their own. */
export interface TokenGrid extends ActivationGrid {
  /** |x| from which an entry is an outlier, above 0; absent: none is. */
  readonly outlierThreshold?: number;
}

/**
 * How what a site is given is rounded before anything is multiplied with it. It belongs to the site, as a bias does, and
 * neither to its weight nor to an adapter: weights of any format come and go behind it, every adapter at the site, active
 * or not, reads what the matrix reads, and so a merged adapter computes what it did beside the matrix.
 *
 * What is multiplied are the rounded values in f32: no product is faster for it, and none needs a kernel of its own.
 */
export interface ActivationQuantizer extends TokenGrid {
  /** 'token': steps over the range of each row as it comes. 'tensor': one step for all rows. */
  readonly per: 'token' | 'tensor';
  /** What is stored; nothing per token. Names begin with `input_`. */
  readonly parts: Readonly<Record<string, Parameter>>;
  /** Straight through where nothing is cut: not the derivative of what is computed. */
  readonly gradient: 'surrogate';
  /** x̂ for x [rows, in] f32. */
  apply(x: Tensor2D, call: Call): Tensor2D;
}

/** A quantizer with one step. */
export interface TensorQuantizer extends ActivationQuantizer {
  readonly per: 'tensor';
  /** The step, [1]; stays above 1e-8 as it trains. */
  readonly step: Parameter;
}

export interface TensorStep {
  readonly scale: number;
  /** The code that stands for 0, in [0, 2^bits); by default, and always where the grid is symmetric, 2^(bits-1). */
  readonly zero?: number;
}

const leastStep = 1e-8;
/** Steps of rows that are all but 0; any row that is not has larger ones. */
const tinyStep = 1e-35;

/** @throws ConfigError naming the field of `what` */
export function checkActivationGrid(what: string, { bits, symmetric, outlierThreshold }: TokenGrid): void {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8)) throw outOfRange(what, 'bits', bits, 'a whole number from 2 to 8');
  checkFlag(what, 'symmetric', symmetric);
  if (outlierThreshold === undefined || (Number.isFinite(outlierThreshold) && outlierThreshold > 0)) return;
  throw outOfRange(what, 'outlierThreshold', outlierThreshold, 'a finite number above 0');
}

/**
 * Dynamic, per token: a row goes from -a to a in 2^bits - 2 steps for a = max |x|, or, asymmetric, from min(0, min x) to
 * max(0, max x) in 2^bits - 1. Nothing is stored and nothing is kept for the backward pass: no value is cut, and gradients go
 * through as they are.
 *
 * With an `outlierThreshold` outliers count for no range, and a column that has one in any of the rows stays in floats
 * (LLM.int8, Dettmers et al. 2022, 2208.07339, section 3.2). The integer part's product and that of the float columns with
 * the decoded columns of W add up to one product with what comes out here, so a weight of any format stays as it is
 * stored. Which columns these are is found on the device, among the rows that are multiplied together.
 */
export function tokenQuantizer(grid: TokenGrid): ActivationQuantizer {
  checkActivationGrid('tokenQuantizer', grid);
  const { bits, symmetric, outlierThreshold } = grid;
  const rows = symmetric ? symmetricRows(2 ** (bits - 1) - 1) : asymmetricRows(2 ** bits - 1);
  const rounded = outlierThreshold === undefined ? rows : besideOutliers(outlierThreshold, rows);
  return {
    per: 'token',
    bits,
    symmetric,
    ...(outlierThreshold !== undefined && { outlierThreshold }),
    parts: {},
    gradient: 'surrogate',
    apply: (x) =>
      withGradient(
        [x],
        () => tidy(() => rounded(x)),
        (dy) => [dy],
      ) as Tensor2D,
  };
}

const symmetricRows =
  (most: number) =>
  (x: Tensor2D): Tensor => {
    const step = maximum(div(max(abs(x), 1, true), most), tinyStep);
    return mul(clipByValue(round(div(x, step)), -most, most), step);
  };

const asymmetricRows =
  (most: number) =>
  (x: Tensor2D): Tensor => {
    const least = minimum(min(x, 1, true), 0);
    const step = maximum(div(sub(maximum(max(x, 1, true), 0), least), most), tinyStep);
    const zero = round(neg(div(least, step)));
    return mul(sub(clipByValue(add(round(div(x, step)), zero), 0, most), zero), step);
  };

/** Ranges of rows begin at 0 or contain it, so that an outlier that counts as 0 counts for none. */
const besideOutliers =
  (threshold: number, rows: (x: Tensor2D) => Tensor) =>
  (x: Tensor2D): Tensor => {
    const sizes = abs(x);
    const kept = where(greaterEqual(sizes, threshold), zerosLike(x), x);
    return where(greaterEqual(max(sizes, 0, true), threshold), x, rows(kept));
  };

/**
 * Static, per tensor: x̂ = s · clamp(round(x / s), -zero, 2^bits - 1 - zero), half to even. The step trains by the gradient
 * of LSQ (Esser et al. 2020, 1902.08153): round(x / s) - x / s inside the range, the end of the range where x is cut; x
 * gets its gradient inside alone. LSQ's factor 1 / √(N · most) is left out: Adam does not see it. The zero never trains.
 *
 * Parts: `input_scale` [1], and `input_zero_point` [1] where asymmetric. x is kept for the backward pass.
 * @param path of the site
 * @throws ConfigError for a grid, a step or a zero out of range
 */
export function tensorQuantizer(path: string, { scale, zero }: TensorStep, grid: ActivationGrid): TensorQuantizer {
  checkActivationGrid(`'${path}'`, grid);
  const { bits, symmetric } = grid;
  const middle = 2 ** (bits - 1);
  const most = 2 ** bits - 1;
  if (!(scale > 0 && scale < Infinity)) throw outOfRange(`'${path}'`, 'scale', scale, 'a finite number above 0');
  if (zero !== undefined && !(Number.isInteger(zero) && zero >= 0 && zero <= most))
    throw outOfRange(`'${path}'`, 'zero', zero, `a whole number from 0 to ${most}`);
  if (symmetric && zero !== undefined && zero !== middle) {
    throw new ConfigError(`'${path}': the zero of a symmetric grid of ${bits} bits is ${middle}, got ${zero}`, { path, zero, bits });
  }
  const origin = zero ?? middle;
  const ends: Ends = { least: -origin, most: most - origin };
  const step = denseParameter(`${path}.input_scale`, tensor1d([Math.max(scale, leastStep)]), {
    role: 'scale',
    constraint: { floor: leastStep },
  });
  const stored = symmetric ? undefined : denseParameter(`${path}.input_zero_point`, tensor1d([origin]), { role: 'zero' });
  return {
    per: 'tensor',
    bits,
    symmetric,
    parts: { input_scale: step, ...(stored && { input_zero_point: stored }) },
    gradient: 'surrogate',
    step,
    apply: (x, call) => (call.tracks(step) ? learned(x, call.value(step), ends) : fixed(x, call.value(step), ends)),
  };
}

interface Ends {
  readonly least: number;
  readonly most: number;
}

const valueOf = (x: Tensor2D, step: Tensor, { least, most }: Ends): Tensor =>
  tidy(() => mul(clipByValue(round(div(x, step)), least, most), step));

/** 1 where x / s is inside the range. */
const insideOf = (place: Tensor, { least, most }: Ends): Tensor =>
  tidy(() => cast(logicalAnd(greater(place, least), less(place, most)), 'float32'));

const fixed = (x: Tensor2D, step: Tensor, ends: Ends): Tensor2D =>
  withGradient(
    [x],
    (save) => {
      save([x, step]);
      return valueOf(x, step, ends);
    },
    (dy, [saved, s]) => [tidy(() => mul(dy, insideOf(div(saved!, s!), ends)))],
  ) as Tensor2D;

const learned = (x: Tensor2D, step: Tensor, ends: Ends): Tensor2D =>
  withGradient(
    [x, step],
    (save) => {
      save([x, step]);
      return valueOf(x, step, ends);
    },
    (dy, [saved, s]) =>
      tidy(() => {
        const place = div(saved!, s!);
        const inside = insideOf(place, ends);
        const slope = tidy(() => sub(clipByValue(round(place), ends.least, ends.most), mul(place, inside)));
        return [mul(dy, inside), reshape(sum(mul(dy, slope)), s!.shape)];
      }),
  ) as Tensor2D;

/**
 * A quantizer of x ∘ factors: outliers among the channels are brought nearer to the others before they are rounded, and
 * where they were behind it, so that a matrix needs no factors for it. Parts: those of the base and `input_factors` [in].
 * @param path of the site
 * @param factors above 0, [in]
 */
export function onScaledChannels<Q extends ActivationQuantizer>(path: string, base: Q, factors: Float32Array): Q {
  const channel = factors.findIndex((factor) => !(factor > 0 && factor < Infinity));
  if (channel >= 0) throw outOfRange(`'${path}'`, `factors[${channel}]`, factors[channel], 'a finite number above 0');
  const stored = denseParameter(`${path}.input_factors`, tensor1d(factors), { role: 'scale' });
  return {
    ...base,
    parts: { ...base.parts, input_factors: stored },
    apply: (x, call) => {
      const own = untracked(stored, call) as Tensor1D;
      return scaleColumns(base.apply(scaleColumns(x, own), call), tidy(() => div(1, own)) as Tensor1D);
    },
  };
}
