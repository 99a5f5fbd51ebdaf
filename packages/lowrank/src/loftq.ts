import { checkCount, checkOptions, matMul, mul, sqrt, square, sub, sum, tidy, truncatedSvd, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { InitContext, InitialPair, Initializer } from './initialization.ts';
import { splitFactors } from './pissa.ts';
import { checkQuantizer, quantizedBy } from './requantize.ts';
import { residualOf } from './residual.ts';

export interface LoftqOptions {
  /** What the base is stored as, a method of quantization such as `nf4()`. */
  readonly quantizer: Method;
  /** Rounds of quantizing what the pair leaves and fitting the pair to what that loses; default 1. */
  readonly iterations?: number;
}

/**
 * Quantizes the base and starts the pair at what that loses (LoftQ, Li et al. 2023, algorithm 1): Q = q(W - s·B·A), then
 * s·B·A = the nearest product to W - Q, in turns from B·A = 0. Unlike the reference it divides by s, so that it holds for
 * every scale, and gives back the best round, since rounding can undo what a round gains. The base must be float and
 * becomes Q for good: deleting the adapter leaves Q, and the adapter's file is for Q, which `saveQuantized` writes and a
 * fingerprint in the file tells.
 * Memory: the codes beside W until the whole model is done; a few matrices of one site.
 * @throws ConfigError for iterations out of range or a quantizer that is none
 * @example await adapt(model, lora({ rank: 16, init: loftq({ quantizer: nf4(), iterations: 5 }) }), { at: 'all-linear' });
 */
export function loftq(options: LoftqOptions): Initializer {
  checkOptions('loftq', options, ['quantizer', 'iterations']);
  const { quantizer, iterations = 1 } = options;
  checkQuantizer('loftq', quantizer);
  checkCount('loftq', 'iterations', iterations);
  return {
    name: 'loftq',
    options: { quantizer: quantizer.toJSON(), iterations },
    rewrites: 'quantized',
    check: ({ site, model }) => quantizer.validate?.(site, model),
    linear: (context) => alternate(context, quantizer, iterations),
  };
}

async function alternate(context: InitContext, quantizer: Method, iterations: number): Promise<InitialPair> {
  let best: Round | undefined;
  let last: Round | undefined;
  try {
    for (let round = 0; round < iterations; round++) {
      const next = await turn(context, quantizer, last);
      if (last !== undefined && last !== best) freeRound(last);
      last = next;
      if (best !== undefined && best.error <= next.error) continue;
      if (best !== undefined) freeRound(best);
      best = next;
    }
    if (last !== best) freeRound(last!);
    return { a: best!.a, b: best!.b, base: best!.base };
  } catch (error) {
    for (const round of new Set([best, last])) if (round !== undefined) freeRound(round);
    throw error;
  }
}

interface Round {
  readonly a: Tensor2D;
  readonly b: Tensor2D;
  readonly base: Weight;
  /** ‖W - Q - s·B·A‖ */
  readonly error: number;
}

function freeRound(round: Round): void {
  freePair(round);
  disposeWeight(round.base);
}

async function turn(context: InitContext, quantizer: Method, before: Round | undefined): Promise<Round> {
  const { weight, site, scale } = context;
  const left = before === undefined ? weight.dense() : residualOf(context, before);
  const base = await quantizedBy(quantizer, site, left).finally(() => left.dispose());
  const lost = tidy(() => sub(weight.dense(), base.dense()) as Tensor2D);
  try {
    const pair = await nearestPair(lost, context);
    const gap = tidy(() => sqrt(sum(square(sub(lost, mul(matMul(pair.b, pair.a), scale))))));
    const [error] = await gap.data();
    gap.dispose();
    return { ...pair, base, error: error! };
  } catch (error) {
    disposeWeight(base);
    throw error;
  } finally {
    lost.dispose();
  }
}

// As the LQ-LoRA authors have it; the rounds around it correct what a sketch misses.
const sketchIterations = 2;

/** The pair of the rank with s·B·A nearest to a matrix [out, in]. */
export async function nearestPair(
  matrix: Tensor2D,
  { rank, scale, draw, aPath }: Pick<InitContext, 'rank' | 'scale' | 'draw' | 'aPath'>,
): Promise<{ a: Tensor2D; b: Tensor2D }> {
  return splitFactors(await truncatedSvd(matrix, { rank, iterations: sketchIterations, noise: draw.at(`${aPath}#init`) }), rank, scale);
}

export function freePair(pair: Pick<InitialPair, 'a' | 'b'> | undefined): void {
  pair?.a.dispose();
  pair?.b.dispose();
}
