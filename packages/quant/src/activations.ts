import {
  add,
  checkOneOf,
  checkOptions,
  clipByValue,
  ConfigError,
  dispose,
  div,
  max,
  maximum,
  min,
  minimum,
  mul,
  NumericError,
  outOfRange,
  round,
  square,
  stack,
  sub,
  sum,
  tensor1d,
  tensor2d,
  tidy,
  unstack,
  zeros,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Collector, type CollectorState, type CountedRows, type Method, type Window } from '@niwaki/engine';
import { checkActivationGrid, tensorQuantizer, tokenQuantizer, type ActivationGrid, type TensorStep } from '@niwaki/weights';
import type { Site } from '@niwaki/nn';

export interface ActivationOptions {
  /** Bits of one code: a whole number from 2 to 8; default 8. */
  readonly bits?: number;
  /** true: 0 in the middle of the codes. false (default): the code for 0 follows the values, so that one-sided ones waste none. */
  readonly symmetric?: boolean;
  /**
   * 'token' (default): each row over its own range, as it comes. 'tensor': one step a site, the one that loses least of the
   * squares on calibration batches.
   */
  readonly per?: 'token' | 'tensor';
  /**
   * Per token: columns of the input with any |x| from here on are multiplied in floats, and no such x widens the range of
   * its row (LLM.int8 has 6). Default 0: no column is.
   */
  readonly outlierThreshold?: number;
}

type Rounding = Omit<ActivationOptions, 'outlierThreshold'>;

export const activationNames = ['bits', 'symmetric', 'per'] as const;

/** What methods that round activations take, checked, with defaults filled in. */
export function activationOptions(what: string, { bits = 8, symmetric = false, per = 'token' }: Rounding): Required<Rounding> {
  checkActivationGrid(what, { bits, symmetric });
  checkOneOf(what, 'per', per, ['token', 'tensor']);
  return { bits, symmetric, per };
}

function checkThreshold(threshold: number, per: 'token' | 'tensor'): void {
  if (!(Number.isFinite(threshold) && threshold >= 0))
    throw outOfRange('activations', 'outlierThreshold', threshold, 'a finite number of at least 0');
  if (threshold === 0 || per === 'token') return;
  throw new ConfigError(`activations: outlierThreshold ${threshold} is for rows with ranges of their own`, {
    per,
    outlierThreshold: threshold,
    help: "Give per: 'token', or leave outlierThreshold away.",
  });
}

/**
 * Rounds what linear maps multiply with, before or after their weights are quantized by any other method, and leaves the
 * weights alone. Operands of attention are sites too, the queries, keys and values as they enter their products and a cache:
 * `at: ['all-linear', 'keys', 'values']`. A row there is one head of one token, and rows are all that is rounded per. The
 * probabilities are no site: the attention kernel never has them all.
 *
 * Stored: nothing per token, 4 or 8 bytes a site per tensor. Work per tensor: two forwards of each block over the batches,
 * and 24 roundings of each input in the second. Products stay in f32: this is what low-bit activations cost in quality, and
 * what a device with integer products would compute. LLM.int8 is `activations({ symmetric: true, outlierThreshold: 6 })` over
 * `rtn({ bits: 8, groupSize: 'row', symmetric: true })`.
 * @throws ConfigError for options out of range, an operand per tensor, or calibration batches missing or too many;
 * NotFoundError for an embedding; NumericError for an input that is not finite
 * @example await quantize(model, activations({ bits: 8 }))
 */
export function activations(options: ActivationOptions = {}): Method {
  checkOptions('activations', options, [...activationNames, 'outlierThreshold']);
  const { outlierThreshold = 0 } = options;
  const { per, ...grid } = activationOptions('activations', options);
  checkThreshold(outlierThreshold, per);
  const rule = outlierThreshold > 0 ? { outlierThreshold } : {};
  const dynamic = tokenQuantizer({ ...grid, ...rule });
  return defineMethod({
    kind: 'activations',
    options: { ...grid, per, ...rule },
    // Weights stay as they are.
    traits: { keeps: ['floats', 'trains', 'encode', 'lookup', 'zeros'] },
    makes: 'input',
    points: ['linear', 'conv', 'head', 'operand'],
    validate: ({ path, point }) => {
      if (per === 'token' || point !== 'operand') return;
      throw new ConfigError(`activations: '${path}' is an operand of attention, which is rounded per token`, {
        path,
        per,
        help: "Leave operands out of `at`, or use per: 'token'.",
      });
    },
    ...(per === 'tensor' && { visit: (window: Window) => putSteps(window, grid) }),
    make: async () => ({ input: dynamic }),
  });
}

async function putSteps(window: Window, grid: ActivationGrid): Promise<void> {
  const steps = await tensorSteps(window, window.groups.flat(), grid);
  for (const [site, step] of steps) window.replace(site, { input: tensorQuantizer(site.path, step, grid) });
}

/** What is tried: the whole range, and each time a fourteenth less of it, to a fifth. */
const shares = Array.from({ length: 24 }, (_, i) => 0.93 ** i);

/**
 * The step of each site's input: of some shares of its range the one that loses least of the squares, over all rows that
 * count. Two passes of the window.
 * @throws NumericError that names the site whose input is not finite
 * @param factors of an input's channels, where these are scaled before they are rounded
 */
export async function tensorSteps(
  window: Window,
  sites: readonly Site[],
  grid: ActivationGrid,
  factors: ReadonlyMap<Site, Float32Array> = new Map(),
): Promise<ReadonlyMap<Site, TensorStep>> {
  const ranges = await window.collect(sites, { range: inputRange(factors) });
  const errors = await window.collect(sites, { step: leastError(grid, factors, (site) => ranges.get(site)!.range) });
  return new Map(
    sites.map((site) => {
      const { step } = errors.get(site)!;
      if (Number.isFinite(step.scale)) return [site, step];
      throw new NumericError(`what '${site.path}' is given on the calibration batches is not finite`, { path: site.path });
    }),
  );
}

type Interval = readonly [least: number, most: number];

const scaledBy = (factors: ReadonlyMap<Site, Float32Array>, site: Site): CollectorState => {
  const own = factors.get(site);
  return own === undefined ? {} : { factors: tensor1d(own) };
};
const scaled = (x: Tensor2D, { factors }: CollectorState): Tensor => (factors === undefined ? x : mul(x, factors));
const counted = (x: Tensor, { mask }: CountedRows): Tensor => (mask === undefined ? x : mul(x, mask));

/** From min(0, min x) to max(0, max x). */
function inputRange(factors: ReadonlyMap<Site, Float32Array>): Collector<Interval> {
  return {
    init: (site) => ({ ...scaledBy(factors, site), least: zeros([1]), most: zeros([1]) }),
    update: (state, x, rows) => {
      const values = counted(scaled(x, state), rows);
      return { ...state, least: minimum(state['least']!, min(values)), most: maximum(state['most']!, max(values)) };
    },
    finish: async ({ factors: own, least, most }) => {
      const [[from], [to]] = await Promise.all([least!.data(), most!.data()]);
      dispose([own, least, most].filter((tensor) => tensor !== undefined));
      return [from!, to!];
    },
  };
}

/** The squares that each step tried loses, and the best of them. */
function leastError(
  grid: ActivationGrid,
  factors: ReadonlyMap<Site, Float32Array>,
  rangeOf: (site: Site) => Interval,
): Collector<TensorStep> {
  return {
    init: (site) => {
      const tried = shares.map((share) => stepOf(rangeOf(site), share, grid));
      const steps = tensor2d(tried.map(({ scale, zero }) => [scale, zero]));
      return { ...scaledBy(factors, site), steps, errors: zeros([shares.length]) };
    },
    update: (state, x, rows) => {
      const values = scaled(x, state);
      const each = unstack(state['steps']!).map((step) =>
        tidy(() => {
          const [scale, zero] = unstack(step);
          const codes = clipByValue(add(round(div(values, scale!)), zero!), 0, 2 ** grid.bits - 1);
          return sum(square(counted(sub(mul(sub(codes, zero!), scale!), values), rows)));
        }),
      );
      return { ...state, errors: add(state['errors']!, stack(each)) };
    },
    finish: async ({ factors: own, steps, errors }) => {
      const [lost, tried] = await Promise.all([errors!.data(), steps!.data()]);
      const best = lost.indexOf(Math.min(...lost));
      dispose([own, steps, errors].filter((tensor) => tensor !== undefined));
      return { scale: tried[2 * best]!, zero: tried[2 * best + 1]! };
    },
  };
}

/** A part of a range in whole steps; of an input that is always 0 any will do. */
function stepOf([least, most]: Interval, share: number, { bits, symmetric }: ActivationGrid): Required<TensorStep> {
  const middle = 2 ** (bits - 1);
  const width = symmetric ? Math.max(-least, most) / (middle - 1) : (most - least) / (2 ** bits - 1);
  const scale = width > 0 ? share * width : 1;
  return { scale, zero: symmetric ? middle : Math.round((-least * share) / scale) };
}
