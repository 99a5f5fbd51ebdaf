import { div, max, maximum, mean, mul, reshape, sqrt, square, sub, sum, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { InitContext } from './initialization.ts';
import { freePair, nearestPair } from './loftq.ts';
import { quantizedBy } from './requantize.ts';
import { residualOf } from './residual.ts';

export interface Decomposition {
  /** [rank, in] */
  readonly a: Tensor2D;
  /** [out, rank] */
  readonly b: Tensor2D;
  readonly base: Weight;
  /** ‖√F ∘ (W - s·B·A - Q)‖, of each round that was kept; the last is that of what is given back. */
  readonly errors: readonly number[];
}

/** The reference goes on for any gain; below a thousandth of the error it is many rounds for nothing that shows. */
const leastGain = 1e-3;

export interface DecomposeOptions {
  readonly quantizer: Method;
  /** At most. */
  readonly iterations: number;
  /** [out, in], not negative: how much an error of each entry matters. */
  readonly importance?: Tensor2D | undefined;
}

/**
 * W ≈ s·B·A + Q (LQ-LoRA, Guo et al. 2023, algorithm 1): the nearest pair to W - Q, then Q = q(W - s·B·A), in turns from
 * Q = 0, while the error falls by more than a thousandth. The best round is given back. Its tensors are the caller's.
 */
export async function decompose(context: InitContext, { quantizer, iterations, importance }: DecomposeOptions): Promise<Decomposition> {
  const errors: number[] = [];
  let best: Omit<Decomposition, 'errors'> | undefined;
  try {
    for (let round = 0; round < iterations; round++) {
      const next = await turn(context, quantizer, importance, best?.base);
      const last = errors.at(-1) ?? Infinity;
      if (!(next.error < last) && best !== undefined) {
        free(next);
        break;
      }
      if (best !== undefined) free(best);
      const { error, ...kept } = next;
      best = kept;
      errors.push(error);
      if (last - error < leastGain * error) break;
    }
    return { ...best!, errors };
  } catch (error) {
    if (best !== undefined) free(best);
    throw error;
  }
}

type Parts = Pick<Decomposition, 'a' | 'b' | 'base'>;

export function free({ a, b, base }: Parts): void {
  freePair({ a, b });
  disposeWeight(base);
}

async function turn(
  context: InitContext,
  quantizer: Method,
  importance: Tensor2D | undefined,
  before: Weight | undefined,
): Promise<Parts & { error: number }> {
  const { weight, site } = context;
  const rest = tidy(() => (before === undefined ? weight.dense() : (sub(weight.dense(), before.dense()) as Tensor2D)));
  const pair = await weightedPair(rest, context, importance).finally(() => rest.dispose());
  const left = residualOf(context, pair);
  try {
    const base = await quantizedBy(quantizer, site, left);
    const error = tidy(() => {
      const gap = square(sub(left, base.dense()));
      return sqrt(sum(importance === undefined ? gap : mul(gap, importance)));
    });
    const [value] = await error.data();
    error.dispose();
    return { ...pair, base, error: value! };
  } catch (error) {
    freePair(pair);
    throw error;
  } finally {
    left.dispose();
  }
}

/**
 * The pair nearest to a matrix where errors count by importance F: that of a ∘ M ∘ c for a = √(means of F's rows) and
 * c = √(means of its columns), divided by both again. The optimum where F is a product of the two.
 */
export async function weightedPair(
  matrix: Tensor2D,
  context: Pick<InitContext, 'rank' | 'scale' | 'draw' | 'aPath'>,
  importance: Tensor2D | undefined,
): Promise<{ a: Tensor2D; b: Tensor2D }> {
  if (importance === undefined) return nearestPair(matrix, context);
  const [rows, columns] = tidy(() => [sides(importance, 1, [-1, 1]), sides(importance, 0, [1, -1])]) as [Tensor2D, Tensor2D];
  const scaled = tidy(() => mul(mul(matrix, rows), columns) as Tensor2D);
  try {
    const pair = await nearestPair(scaled, context);
    const result = tidy(() => ({ a: div(pair.a, columns) as Tensor2D, b: div(pair.b, rows) as Tensor2D }));
    freePair(pair);
    return result;
  } finally {
    for (const tensor of [rows, columns, scaled]) tensor.dispose();
  }
}

// A row that nothing reads has no importance, and must not be divided by.
const sides = (importance: Tensor2D, axis: number, shape: number[]): Tensor => {
  const side = reshape(sqrt(mean(importance, axis)), shape);
  return maximum(side, maximum(mul(max(side), 1e-8), 1e-30));
};
