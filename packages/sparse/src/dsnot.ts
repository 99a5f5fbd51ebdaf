import { checkFlag, checkOptions, ConfigError, matchesPath, StateError } from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import type { Site } from '@niwaki/nn';
import type { Store } from '@niwaki/weights';
import { isNOfM } from './amount.ts';
import { inputMoments, type InputMoments } from './input-statistics.ts';
import { keepByRows, type Scores } from './keep-entries.ts';
import { checkSite, hostMatrix, prunedWeight, prunerTraits, type HostMatrix, type Pruner } from './pruner.ts';
import { swapEntries } from './swap-entries.ts';
import { wanda, wandaScores } from './wanda.ts';

export interface DsnotOptions {
  /**
   * Whose choice to start from: its amount and its scores, in each row or group; default wanda(). Its other options
   * (scope, store) do not count, and weights that it would change stay as they are.
   */
  readonly initial?: Pruner;
  /** Most swaps of a row; default one for every 80 of its entries, at most 50: the paper's 50 are for rows of 4096 and more, and undo the choice of a narrow row. */
  readonly cycles?: number;
  /** A row whose expected error is at most this is left alone; in units of outputs summed over a sequence. Default 0.1. */
  readonly threshold?: number;
  /** How much a steady input counts when entries are brought back: contributions are divided by this power of the variance; default 1. */
  readonly variancePower?: number;
  /** Stop a row before its expected error changes its sign; default false, and always so with n and m. */
  readonly sameSign?: boolean;
  /** 'attention' (default): only matrices of attention are changed, the others keep the start's choice. 'all', or patterns of paths. */
  readonly refine?: 'attention' | 'all' | readonly string[];
  /** As in the other pruners. */
  readonly store?: Store;
}

/**
 * DSnoT (Zhang et al. 2024, 2310.08915): starts from another pruner's choice and swaps pruned and kept entries of each row
 * until the expected output is what it was. No weight changes its value, nothing is trained.
 * Memory: 12 · in bytes of statistics for each input of a block besides the start's, 30 bytes an entry of one matrix on the
 * host. A calibration batch is taken for one sequence.
 * @throws ConfigError for options out of range; StateError for a matrix that has lost its entries already
 * @example await prune(model, dsnot({ initial: wanda({ sparsity: 0.6 }) }), { calibrate: { batches } })
 */
export function dsnot(options: DsnotOptions = {}): Method {
  checkOptions('dsnot', options, ['initial', 'cycles', 'threshold', 'variancePower', 'sameSign', 'refine', 'store']);
  const { initial = wanda(), cycles, threshold = 0.1, variancePower = 1, refine = 'attention', store = 'masked' } = options;
  if (initial.choice === undefined)
    throw new ConfigError(`dsnot: initial must be a pruner, got '${initial.kind}'`, { initial: initial.kind });
  const { choice } = initial;
  const { amount } = choice;
  const sameSign = options.sameSign ?? isNOfM(amount);
  if (cycles !== undefined && !(Number.isInteger(cycles) && cycles >= 1))
    throw new ConfigError(`dsnot: cycles must be a whole number from 1, got ${cycles}`, { cycles });
  if (!(threshold > 0)) throw new ConfigError(`dsnot: threshold must be above 0, got ${threshold}`, { threshold });
  if (!(variancePower >= 0)) throw new ConfigError(`dsnot: variancePower must be at least 0, got ${variancePower}`, { variancePower });
  checkFlag('dsnot', 'sameSign', sameSign);
  if (!sameSign && isNOfM(amount)) throw new ConfigError('dsnot: with n and m a row always stops before its sign changes', { sameSign });
  if (!['masked', 'n-of-m', 'csr'].includes(store) || (store === 'n-of-m' && !isNOfM(amount))) {
    throw new ConfigError(`dsnot: store must be 'masked', 'csr' or, with n and m, 'n-of-m', got ${JSON.stringify(store)}`, { store });
  }
  const refined = refinedBy(refine);

  const chosen = async (site: Site, matrix: HostMatrix, statistics: Readonly<Record<string, unknown>>): Promise<Uint8Array> => {
    const { values, shape } = matrix;
    const scores = await choice.scores(matrix, statistics);
    const kept = keepByRows(scores, shape, amount);
    if (!refined(site)) return kept;
    refuseSparse(matrix, kept);
    const moments = await hostMoments(statistics['moments'] as InputMoments);
    swapRows(
      matrix,
      kept,
      { scores, importance: wandaScores({ values, shape }, moments.squares), ...moments },
      {
        cycles: cycles ?? defaultCycles(shape[1]),
        threshold,
        variancePower,
        sameSign,
        ...(isNOfM(amount) ? { group: amount.m } : {}),
      },
    );
    return kept;
  };

  return defineMethod({
    kind: 'dsnot',
    options: {
      initial: { kind: initial.kind, options: initial.options },
      ...(cycles !== undefined && { cycles }),
      threshold,
      variancePower,
      sameSign,
      refine: typeof refine === 'string' ? refine : [...refine],
      store,
    },
    traits: {
      ...prunerTraits(store),
      forbids: ['zeros'],
      help: { zeros: 'dsnot brings entries back: run it on the model as it was, with the pruner as `initial`.' },
    },
    makes: 'weight',
    collect: { ...choice.collect, moments: inputMoments() },
    walk: { advance: 'current' },
    validate: (site) => checkSite(site, amount),
    plan: async (sites) => {
      if (sites.some(refined)) return {};
      throw new ConfigError('dsnot: no selected site is one of those to refine', {
        refine: typeof refine === 'string' ? refine : [...refine],
        sites: sites.map(({ path }) => path),
        help: "Use refine: 'all', or patterns of paths.",
      });
    },
    make: async (site, _, statistics) => {
      const matrix = await hostMatrix(site);
      const kept = await chosen(site, matrix, statistics!);
      return { weight: await prunedWeight(site, matrix.values, kept, { amount, store }) };
    },
  });
}

const defaultCycles = (width: number): number => Math.min(50, Math.max(1, Math.floor(width / 80)));

/** A module of attention: `self_attn.q_proj`, `attn.c_attn`, `attention.query`. */
const ofAttention = (path: string): boolean => path.split('.').some((segment) => /attn|attention/i.test(segment));

function refinedBy(refine: NonNullable<DsnotOptions['refine']>): (site: Site) => boolean {
  if (refine === 'all') return () => true;
  if (refine === 'attention') return ({ path }) => ofAttention(path);
  if (Array.isArray(refine) && refine.length > 0) return ({ path }) => refine.some((pattern) => matchesPath(pattern, path));
  throw new ConfigError(`dsnot: refine must be 'attention', 'all' or patterns of paths, got ${JSON.stringify(refine)}`, {
    refine: String(refine),
  });
}

/** Where more entries are 0 than shall be, there is nothing to bring back. */
function refuseSparse({ path, shape: [out, width], values }: HostMatrix, kept: Uint8Array): void {
  for (let row = 0; row < out; row++) {
    const range = [row * width, (row + 1) * width] as const;
    const zeros = values.subarray(...range).reduce((count, value) => count + (value === 0 ? 1 : 0), 0);
    const pruned = width - kept.subarray(...range).reduce((count, keep) => count + keep, 0);
    if (zeros <= pruned) continue;
    throw new StateError(`'${path}' holds ${zeros} zeros in row ${row}, ${pruned} shall be: its entries are lost already`, {
      path,
      row,
      zeros,
      pruned,
      help: 'dsnot needs the dense weights: run it on the model as it was, with the pruner as `initial`.',
    });
  }
}

interface HostMoments {
  readonly squares: ArrayLike<number>;
  readonly sums: ArrayLike<number>;
  readonly variances: ArrayLike<number>;
}

const hostMoments = async ({ squares, sums, variances }: InputMoments): Promise<HostMoments> => ({
  squares: await squares.data(),
  sums: await sums.data(),
  variances: await variances.data(),
});

/** An input that never varies: preferred, and no division by 0. */
const leastVariance = 1e-30;

/** Swaps in every row of a matrix; the flags change in place. */
export function swapRows(
  { values, shape: [out, width] }: Pick<HostMatrix, 'values' | 'shape'>,
  kept: Uint8Array,
  known: Omit<HostMoments, 'squares'> & { readonly scores: Scores; readonly importance: Float32Array },
  {
    variancePower,
    ...options
  }: {
    readonly cycles: number;
    readonly threshold: number;
    readonly variancePower: number;
    readonly sameSign: boolean;
    readonly group?: number;
  },
): readonly { readonly before: number; readonly after: number }[] {
  const steadiness = Float64Array.from(known.variances, (variance) => Math.max(variance, leastVariance) ** variancePower);
  return Array.from({ length: out }, (_, row) => {
    const [from, to] = [row * width, (row + 1) * width];
    const contributions = Float64Array.from({ length: width }, (__, i) => values[from + i]! * known.sums[i]!);
    return swapEntries(
      {
        contributions,
        growth: contributions.map((contribution, i) => contribution / steadiness[i]!),
        importance: known.importance.subarray(from, to),
        scores: known.scores.subarray(from, to),
        kept: kept.subarray(from, to),
      },
      options,
    );
  });
}
