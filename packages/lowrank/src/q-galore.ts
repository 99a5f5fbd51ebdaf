import { checkCount, checkOneOf, checkOptions, ConfigError, outOfRange, tensor1d, type AffineBits, type Tensor } from '@niwaki/tensor';
import type { State, Transform } from '@niwaki/optim';
import { defineMethod, roundsFloats, type Method } from '@niwaki/engine';
import { encodeAffine, rowsOf, trainedAffine } from '@niwaki/weights';
import { checkBasisCode, codedSubspace } from './coded-subspace.ts';
import { defined, projectedAdam, projectedAdamNames, projectGradients, type GaloreOptions } from './galore.ts';
import type { Pace, Subspace } from './subspace.ts';

export interface QGaloreOptions extends Omit<GaloreOptions, 'projection'>, LazyOptions {
  /** Bits of an entry of a basis: 2, 3, 4 (default) or 8. */
  readonly basisBits?: AffineBits;
  /** Entries of a basis that share a scale; default 256. */
  readonly basisGroupSize?: number;
}

/** How a matrix whose subspace stays where it is comes to be decomposed less often. */
export interface LazyOptions {
  /** Updates from one choice of a subspace to the next, to begin with; default 200. */
  readonly every?: number;
  /** Mean likeness of the last choices from which on the gap grows, in [0, 1]; default 0.4. Above 1: it never does. */
  readonly threshold?: number;
  /** The gap is multiplied by it; a whole number, default 2. */
  readonly growth?: number;
  /** Likenesses that the mean is over; default 5. */
  readonly window?: number;
  /** The gap grows no further than this; default without bound. */
  readonly longest?: number;
}

const lazyNames = ['every', 'threshold', 'growth', 'window', 'longest'] as const;

/**
 * Q-GaLore (Zhang et al. 2024, 2407.08296): GaLore with Adam in 8 bits, its basis in 4, and a subspace that is chosen less
 * and less often where it stays where it was. Over `int8Weights()` the only copy of a matrix is a byte an entry; over f32
 * weights it trains these. With commit: 'eager' it is the paper's per-layer update.
 * State of a matrix of sides s ≤ l: s · rank / 2 + 8 · s · rank / 256 bytes for the basis, 2.03 · l · rank for the moments,
 * and 4 · s for the vector that choices are compared by.
 * @example qGalore({ learningRate: 0.01, rank: 128 })
 */
export function qGalore(options: QGaloreOptions): Transform {
  checkOptions('qGalore', options, ['rank', 'scale', 'at', 'basisBits', 'basisGroupSize', ...lazyNames, ...projectedAdamNames]);
  const { basisBits = 4, basisGroupSize = 256, threshold, growth, window, longest, ...galore } = options;
  const { rank, every = 200, scale, at, ...adam } = galore;
  const code = { bits: basisBits, groupSize: basisGroupSize };
  checkBasisCode('qGalore', code);
  const lazy = { every, ...defined({ threshold, growth, window, longest }) };
  const kind = {
    name: 'q-galore',
    options: { basis: code, pace: lazyDefaults(lazy) },
    stored: (subspace: Subspace) => codedSubspace(subspace, code),
    pace: lazyPace(lazy),
  };
  return projectedAdam('q-galore', { state: '8bit', ...adam }, (inner) =>
    projectGradients(inner, { rank, every, ...defined({ scale, at }) }, kind),
  );
}

/**
 * Doubles the gap where the last choices were alike: the mean over the last `window` of |cos| between the first vectors of
 * one choice and the next. Not signed, as in the official code: the sign of a singular vector means nothing.
 */
export function lazyPace(options: LazyOptions = {}): Pace {
  checkOptions('lazyPace', options, lazyNames);
  const { every, threshold, growth, window, longest } = lazyDefaults(options);
  for (const [field, value] of Object.entries({ every, growth, window })) checkCount('qGalore', field, value);
  if (longest !== Infinity) checkCount('qGalore', 'longest', longest);
  if (!(threshold >= 0)) throw outOfRange('qGalore', 'threshold', threshold, 'a number of at least 0');
  return {
    varies: true,
    // Below 0: no likeness yet.
    initial: () => ({ gap: every, recent: tensor1d(new Float32Array(window).fill(-1)) }),
    gap: ({ gap }) => gap as number,
    after: async ({ gap, recent }, before, now) => {
      const older = (await (recent as Tensor).data()).slice(1);
      const likenesses = Float32Array.of(...older, await likeness(before, now));
      const mean = likenesses.reduce((sum, value) => sum + value, 0) / window;
      const grows = likenesses[0]! >= 0 && mean >= threshold;
      return { gap: grows ? Math.min((gap as number) * growth, Math.max(longest, every)) : (gap as number), recent: tensor1d(likenesses) };
    },
  };
}

const lazyDefaults = ({
  every = 200,
  threshold = 0.4,
  growth = 2,
  window = 5,
  longest = Infinity,
}: LazyOptions): Required<LazyOptions> => ({ every, threshold, growth, window, longest });

/** |cos| of the first vectors of two choices; 0 where one of them is nothing. */
async function likeness(before: State, now: State): Promise<number> {
  const [a, b] = await Promise.all([before, now].map(({ first }) => (first as Tensor).data()));
  let [product, squaresA, squaresB] = [0, 0, 0];
  for (let i = 0; i < a!.length; i++) {
    product += a![i]! * b![i]!;
    squaresA += a![i]! ** 2;
    squaresB += b![i]! ** 2;
  }
  const norms = Math.sqrt(squaresA * squaresB);
  return norms === 0 ? 0 : Math.abs(product) / norms;
}

export interface Int8WeightsOptions {
  /**
   * Entries of a row that share a scale and a zero, at most: the largest multiple of 8 up to it that divides the row;
   * default 256.
   */
  readonly groupSize?: number;
  /** How updates are rounded; default 'stochastic'. 'nearest' loses every update of less than half a step. */
  readonly rounding?: 'stochastic' | 'nearest';
}

/**
 * Stores matrices in the bytes that Q-GaLore trains: rounded to the nearest once, and from then on the only copy there
 * is. Bytes an entry: 1 + 5 / groupSize. Any optimizer trains them. Linear maps only; embeddings, the head and norms stay
 * in floats.
 * @throws ConfigError for rows that 8 does not divide, tied matrices, embeddings
 * @example await quantize(model, int8Weights()); train(model, { data, optimizer: qGalore({ learningRate: 0.01, rank: 128 }), commit: 'eager' })
 */
export function int8Weights(options: Int8WeightsOptions = {}): Method {
  checkOptions('int8Weights', options, ['groupSize', 'rounding']);
  const { groupSize = 256, rounding = 'stochastic' } = options;
  checkCount('int8Weights', 'groupSize', groupSize, 8);
  checkOneOf('int8Weights', 'rounding', rounding, ['stochastic', 'nearest']);
  return defineMethod({
    kind: 'int8-weights',
    options: { groupSize, rounding },
    traits: { ...roundsFloats, gives: ['encode', 'lookup', 'trains'], forbids: ['zeros'] },
    makes: 'weight',
    validate: ({ path, point, weight, tiedTo }) => {
      if (point === 'embedding' || tiedTo !== undefined) {
        throw new ConfigError(`int8Weights: '${path}' ${tiedTo === undefined ? 'looks rows up' : `is tied to '${tiedTo}'`}`, {
          path,
          help: 'Leave embeddings and tied heads in floats: they are optimized whole.',
        });
      }
      groupOf(weight!.shape[1], groupSize, path);
    },
    make: async ({ path, weight }) => {
      const { shape } = weight!;
      const group = groupOf(shape[1], groupSize, path);
      const parts = await encodeAffine(`${path}.weight`, shape, rowsOf(weight!), { bits: 8, groupSize: group, grid: 'asymmetric' });
      const made = trainedAffine(path, shape, parts, { groupSize: group, rounding });
      made.matrix!.trainable = true;
      return { weight: made };
    },
  });
}

/** The largest multiple of 8 up to `most` that divides a row. */
function groupOf(width: number, most: number, path: string): number {
  for (let size = Math.floor(Math.min(most, width) / 8) * 8; size > 0; size -= 8) if (width % size === 0) return size;
  throw new ConfigError(`int8Weights: '${path}' has rows of ${width}, which no group of a multiple of 8 divides`, {
    path,
    width,
    help: 'Leave this matrix in floats.',
  });
}
