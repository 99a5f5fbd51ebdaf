import {
  add,
  checkOptions,
  ConfigError,
  createDraw,
  div,
  exp,
  log,
  max,
  mul,
  noise,
  reshape,
  square,
  stopGradient,
  sub,
  sum,
  tidy,
  zeros,
  type FactoredMoments,
  type Scalar,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  defineMethod,
  inputAbsMax,
  roundsFloats,
  type CountedRows,
  type Method,
  type Penalty,
  type Plan,
  type Window,
} from '@niwaki/engine';
import {
  affineGroupSize,
  affineStep,
  expectFinite,
  fakeQuant,
  isSymmetric,
  tokenQuantizer,
  type AffineGrid,
  type FakeQuant,
  type FakeQuantParts,
} from '@niwaki/weights';
import { adamw } from '@niwaki/optim';
import type { Model, Site } from '@niwaki/nn';
import { cbqActivations, lendInputs, operandsOf, trainedInputs, type CbqActivations, type RoundedActivations } from './cbq-activations.ts';
import { checkIntegerSite, integerNames, integerOptions, type IntegerOptions } from './affine-options.ts';
import { collectMoments, compensatedStart } from './cbq-start.ts';
import { splitOutliers } from './outliers.ts';

/** Where the rounding starts: at the float matrix, or on the way from there to the codes that GPTQ chooses. */
export type RoundingStart = 'gptq' | 'float';

export type OutlierTreatment = 'none' | 'weights' | 'inputs' | 'both';

const treatments: readonly OutlierTreatment[] = ['none', 'weights', 'inputs', 'both'];
const starts: readonly RoundingStart[] = ['gptq', 'float'];

export interface CbqOptions extends IntegerOptions {
  /** Blocks that are fitted together; default 2. */
  readonly window?: number;
  /** Blocks of a window that the next one fits on; default 1, below `window`. */
  readonly overlap?: number;
  /** 'full' (default): the rounding of each entry trains by itself. A number: it trains as a product of that rank (LoRA-Rounding). */
  readonly rank?: number | 'full';
  /**
   * 'gptq': each entry starts on its way to the code, of the two around it, that GPTQ chooses; default where `rank` is 'full'.
   * 'float': where the float matrix has it; the only start of products of a rank.
   */
  readonly start?: RoundingStart;
  /** Passes over the batches for each window, a step a batch; default 5. */
  readonly epochs?: number;
  /**
   * Learning rate of the rounding, in logits a step of Adam; default 0.2 up to a hidden size of 192, and 38.4 / hiddenSize
   * above it: a step moves an output by as much as all entries of a row together.
   */
  readonly learningRate?: number;
  /** Learning rate of the steps; default 1e-4. */
  readonly scaleRate?: number;
  /**
   * Weight of the term that decides each matrix's rounding, beside the outputs' relative error; default 8 / 4^bits, as
   * the error of rounding falls with the bits.
   */
  readonly decide?: number;
  /** Weight of the divergence of the hidden features' softmax; default 1. */
  readonly divergence?: number;
  /**
   * What is done about outliers beforehand: those of 'weights' are cut, those among the channels of 'inputs' taken into
   * the matrices half way, 'both', or 'none' (default). Cutting loses what no rounding makes up for.
   */
  readonly outliers?: OutlierTreatment;
  /** What the matrices multiply with is rounded too, while they are fitted and from then on. Default: it stays in floats. */
  readonly activations?: CbqActivations;
  /** Of the factors' noise; default 0. */
  readonly seed?: number;
}

/** Part of a fit in which nothing is made to decide, and that after which the deciding term stays as sharp as it gets. */
const [warm, sharpest] = [0.2, 0.6];
/** Exponent of the deciding term where it sets in, and from `sharpest` on: only then it reaches entries in the middle. */
const [blunt, sharp] = [20, 2];

/**
 * CBQ (Ding et al. 2025, 2312.07950): fits a few blocks at a time to the outputs of the float ones. Which way each entry
 * is rounded and the steps train together, from on the way to GPTQ's choice, while a term pushes every entry to a whole
 * code; a block that the next window shares stays undecided until that one is fitted. What is stored is what `rtn` stores.
 * With `activations` the steps of the inputs train in their windows too, and stay at their sites.
 *
 * Memory: three times the activations that enter a window, over all batches; one block's tape; for each entry of the
 * window's matrices 16 bytes beside the float ones ('full': rounding, gradient, Adam's state), or 16 · rank · (out + in)
 * a matrix; 15 f32 copies of one matrix at most while it is multiplied. For GPTQ's choice 4 · in² bytes an input on the
 * device, in² doubles twice and 24 bytes an entry of one matrix on the host. Work: epochs · batches steps a window, each two
 * forwards and a backward of its blocks at most, in which every product makes its matrix again; before them in³/3 +
 * out · in²/2 multiply-adds a matrix on the host.
 * @throws ConfigError for options out of range, without calibration batches, or with more blocks a window than are
 * quantized; NumericError for a matrix or a loss that is not finite
 * @example await quantize(model, cbq({ bits: 2 }), { calibrate: { batches } })
 */
export function cbq(options: CbqOptions = {}): Method {
  checkOptions('cbq', options, [
    ...integerNames,
    'window',
    'overlap',
    'rank',
    'start',
    'epochs',
    'learningRate',
    'scaleRate',
    'decide',
    'divergence',
    'outliers',
    'activations',
    'seed',
  ]);
  const { grid, ...named } = integerOptions('cbq', { mse: true, ...options });
  const { bits, groupSize, mse } = named;
  const settings = fitOptions(bits, options);
  const { window: width, overlap, rank, start, epochs, scaleRate, decide, divergence, outliers, seed } = settings;
  const rounded = options.activations === undefined ? undefined : cbqActivations(options.activations);
  const operandRows = rounded && tokenQuantizer(rounded);

  const visit = async (window: Window, plan: Plan): Promise<void> => {
    for (const operand of (plan as CbqPlan).operands) {
      if (operand.input !== operandRows && isIn(window, operand)) window.replace(operand, { input: operandRows! });
    }
    const { learningRate } = plan as CbqPlan;
    await lendSoft(window, { bits, groupSize, grid, mse, rank, start, outliers, seed, ...(rounded && { activations: rounded }) });
    const inputs = rounded && (await trainedInputs(window, rounded, learningRate));
    const softAt = (site: Site): FakeQuant => window.lent(site) as FakeQuant;
    const soft = window.groups.flat().map(softAt);
    const leaving = [...window.leaving].map(softAt);
    await window.fit({
      train: [...soft.flatMap(({ steps, rounding }) => [steps, ...rounding]), ...(inputs?.quantizers ?? []).map(({ step }) => step)],
      optimizer: adamw({
        learningRate,
        weightDecay: 0,
        groups: [...(inputs?.groups ?? []), { roles: ['scale'], rateScale: scaleRate / learningRate }],
      }),
      epochs,
      loss: (output, target, rows) => {
        const y = target['h'] as Tensor2D;
        const counted = rows(y);
        return div(hiddenDistance(y, output['h'] as Tensor2D, { divergence, rows: counted }), meanSquare(y, counted)) as Scalar;
      },
      penalties: (progress) => (progress < warm ? [] : leaving.map((weight) => deciding(weight, { decide, progress }))),
    });
    for (const site of window.leaving) {
      const input = window.lentInput(site);
      window.replace(site, { weight: await softAt(site).settle(), ...(input && { input }) });
    }
  };

  return defineMethod({
    kind: 'cbq',
    options: { ...named, ...settings, ...(rounded && { activations: { ...rounded } }) },
    traits: {
      ...roundsFloats,
      gives: ['encode', 'lookup'],
      // An entry that was 0 is rounded up where that makes up for others.
      forbids: ['zeros'],
      help: {
        ...roundsFloats.help,
        zeros: 'Quantize with rtn(), nf4() or awq(), which leave a 0 at 0, or quantize first and prune into a mask.',
      },
    },
    makes: 'weight',
    walk: { width, stride: width - overlap, advance: 'both' },
    validate: (site) => checkIntegerSite(site, groupSize),
    plan: async (sites, model) => {
      checkDepth(sites, model, width);
      return {
        operands: operandsOf(sites, model, rounded?.attention ?? []),
        learningRate: settings.learningRate ?? Math.min(0.2, 38.4 / model.info.hiddenSize),
      };
    },
    visit,
    make: async ({ path }) => {
      throw new ConfigError(`cbq fits whole blocks and cannot make '${path}' alone`, { path });
    },
  });
}

type CbqPlan = {
  /** Of attention, to be rounded. */
  readonly operands: readonly Site[];
  /** Of the rounding. */
  readonly learningRate: number;
};

const isIn = ({ stages }: Window, { path }: Site): boolean => stages.some((stage) => path.startsWith(`${stage.path}.`));

type FitOptions = Required<Omit<CbqOptions, keyof IntegerOptions | 'activations' | 'learningRate'>> & Pick<CbqOptions, 'learningRate'>;

function fitOptions(bits: number, options: CbqOptions): FitOptions {
  const { window = 2, overlap = Math.min(1, window - 1), rank = 'full', epochs = 5, learningRate, scaleRate = 1e-4 } = options;
  const { start = rank === 'full' ? 'gptq' : 'float' } = options;
  const { decide = 8 / 4 ** bits, divergence = 1, outliers = 'none', seed = 0 } = options;
  const refuse = (name: string, range: string, value: unknown): never => {
    throw new ConfigError(`cbq: ${name} must be ${range}, got ${String(value)}`, { [name]: value });
  };
  const whole = (value: number, least: number): boolean => Number.isInteger(value) && value >= least;
  if (!whole(window, 1)) refuse('window', 'a whole number from 1', window);
  if (!whole(overlap, 0) || overlap >= window) refuse('overlap', `a whole number from 0, below the window of ${window}`, overlap);
  if (rank !== 'full' && !whole(rank, 1)) refuse('rank', "a whole number from 1, or 'full'", rank);
  if (!starts.includes(start)) refuse('start', `one of ${starts.join(', ')}`, start);
  if (start === 'gptq' && rank !== 'full') refuse('start', `'float' with a rank of ${rank}: products of a rank begin at 0`, start);
  if (!whole(epochs, 1)) refuse('epochs', 'a whole number from 1', epochs);
  if (learningRate !== undefined && !(learningRate > 0 && learningRate < Infinity))
    refuse('learningRate', 'a finite number above 0', learningRate);
  for (const [name, value] of Object.entries({ scaleRate, decide, divergence })) {
    if (!(value >= 0 && value < Infinity)) refuse(name, 'a finite number from 0', value);
  }
  if (!treatments.includes(outliers)) refuse('outliers', `one of ${treatments.join(', ')}`, outliers);
  if (!whole(seed, 0)) refuse('seed', 'a whole number from 0', seed);
  return {
    window,
    overlap,
    rank,
    start,
    epochs,
    scaleRate,
    decide,
    divergence,
    outliers,
    seed,
    ...(learningRate !== undefined && { learningRate }),
  };
}

function checkDepth(sites: readonly Site[], model: Model, window: number): void {
  const selected = new Set(sites);
  const holds = model.stages().map((stage) => stage.sites.some((site) => selected.has(site)));
  const blocks = holds.lastIndexOf(true) - holds.indexOf(true) + 1;
  if (window <= blocks) return;
  throw new ConfigError(`cbq: a window of ${window} blocks is longer than the ${blocks} from the first selected site to the last`, {
    window,
    blocks,
    help: 'Use a smaller window, or select sites of more blocks.',
  });
}

interface SoftOptions
  extends Pick<FitOptions, 'rank' | 'start' | 'outliers' | 'seed'>, Required<Pick<IntegerOptions, 'bits' | 'groupSize' | 'mse'>> {
  readonly grid: AffineGrid;
  readonly activations?: RoundedActivations;
}

/**
 * Soft matrices, and what rounds their inputs, at all sites that have none from the window before; those of one input share
 * its channels' factors.
 */
async function lendSoft(window: Window, options: SoftOptions): Promise<void> {
  const fresh = window.groups.map((group) => group.filter((site) => window.lent(site) === undefined)).filter(({ length }) => length > 0);
  if (fresh.length === 0) return;
  const factors = new Map<Site, Float32Array>();
  if (['inputs', 'both'].includes(options.outliers)) {
    const inputs = await window.collect(fresh.flat(), { absMax: inputAbsMax() });
    for (const group of fresh) {
      const scales = channelScales((await inputs.get(group[0]!)!.absMax.data()) as Float32Array);
      if (scales !== undefined) for (const site of group) factors.set(site, scales);
    }
  }
  const momentsOf = options.start === 'gptq' ? await collectMoments(window, fresh, factors) : undefined;
  for (const group of fresh) {
    const moments = await momentsOf?.(group);
    for (const site of group) {
      const inputScales = factors.get(site);
      window.lend(site, await softened(site, { ...options, ...(inputScales && { inputScales }), ...(moments && { moments }) }));
    }
  }
  if (options.activations) await lendInputs(window, fresh.flat(), options.activations, factors);
}

/**
 * Factors on the channels of an input that bring its outliers half way, in powers, to the largest of the others (CBQ,
 * CFP-activation); undefined where there are none.
 * @param absMax the largest |x| of each channel
 */
export function channelScales(absMax: Float32Array): Float32Array | undefined {
  const { bound } = splitOutliers(absMax) ?? { bound: 0 };
  return bound === 0 ? undefined : absMax.map((value) => (value > bound ? Math.sqrt(bound / value) : 1));
}

interface SoftSite extends SoftOptions {
  readonly inputScales?: Float32Array;
  /** Of its input, where the rounding starts at GPTQ's choice. */
  readonly moments?: FactoredMoments;
}

async function softened({ path, weight }: Site, options: SoftSite): Promise<FakeQuant> {
  const { bits, grid, mse, outliers, inputScales, moments } = options;
  const base = weight!;
  const [out, width] = base.shape;
  const groupSize = affineGroupSize(options.groupSize, width, path);
  const dense = base.dense();
  const values = ((await dense.data()) as Float32Array).slice();
  dense.dispose();
  expectFinite(values, `${path}.weight`, width);
  const bound = (['weights', 'both'].includes(outliers) && splitOutliers(values.map(Math.abs))?.bound) || Infinity;
  for (let i = 0; i < values.length; i++) {
    values[i] = Math.min(Math.max(values[i]!, -bound), bound) / (inputScales?.[i % width] ?? 1);
  }
  const steps = Array.from({ length: values.length / groupSize }, (_, g) =>
    affineStep(values, [g * groupSize, (g + 1) * groupSize], { bits, grid, mse }),
  );
  const parts: FakeQuantParts = {
    scales: Float32Array.from(steps, ({ scale }) => scale),
    ...(isSymmetric(grid) ? {} : { zeros: Uint8Array.from(steps, ({ zero }) => zero) }),
    ...(inputScales && { inputScales }),
    rounding:
      moments === undefined
        ? floatStart(path, [out, width], options)
        : await compensatedStart(values, steps, moments, { shape: [out, width], bits, groupSize, grid }),
  };
  return fakeQuant(path, base, parts, { bits, groupSize, grid, ...(bound < Infinity && { bound }) });
}

/** The rounding before it trains: each entry where the matrix has it. */
function floatStart(
  path: string,
  [out, width]: readonly [number, number],
  { rank, seed }: Pick<SoftOptions, 'rank' | 'seed'>,
): FakeQuantParts['rounding'] {
  if (rank === 'full') return zeros([out, width]) as Tensor2D;
  const a = tidy(() => mul(noise([out, rank], createDraw(seed, 0).at(`${path}#rounding`), 'gaussian'), rank ** -0.5));
  return { a: a as Tensor2D, b: zeros([rank, width]) as Tensor2D };
}

/**
 * How far hidden rows z are from the float ones y: ‖y - z‖² + divergence · KL(softmax y ‖ softmax z), softmax over the
 * features; the mean over the rows that count.
 */
export function hiddenDistance(
  y: Tensor2D,
  z: Tensor2D,
  { divergence, rows }: { readonly divergence: number; readonly rows: CountedRows },
): Scalar {
  let each = sum(square(sub(y, z)), 1);
  if (divergence > 0) {
    const p = logSoftmax(y);
    each = add(each, mul(sum(mul(exp(p), sub(p, logSoftmax(z))), 1), divergence));
  }
  return meanOver(each, rows);
}

/** Mean of ‖y‖² over the rows that count. */
const meanSquare = (y: Tensor2D, rows: CountedRows): Scalar => meanOver(sum(square(y), 1), rows);

const meanOver = (each: Tensor, { count, mask }: CountedRows): Scalar =>
  div(sum(mask === undefined ? each : mul(each, reshape(mask, [-1]))), count) as Scalar;

function logSoftmax(x: Tensor2D): Tensor {
  const centered = sub(x, stopGradient(max(x, 1, true)));
  return sub(centered, log(sum(exp(centered), 1, true)));
}

function deciding(weight: FakeQuant, { decide, progress }: { readonly decide: number; readonly progress: number }): Penalty {
  const sharpness = blunt + (sharp - blunt) * Math.min(1, (progress - warm) / (sharpest - warm));
  return { parameters: weight.rounding, value: (call) => mul(weight.undecided(call, sharpness), decide) as Scalar };
}
