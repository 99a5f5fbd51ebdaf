import { checkCount, checkOptions, mul, slice, sqrt, svd, tidy, transpose, truncatedSvd, type Svd, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import type { InitContext, InitialPair, Initializer } from './initialization.ts';
import { checkQuantizer } from './requantize.ts';
import { withResidual } from './residual.ts';

export interface PissaOptions {
  /** Randomized subspace iterations; default: the exact decomposition, on the host, O(out·in·min(out, in)). */
  readonly iterations?: number;
  /** What the residual is stored as, a method of quantization such as `nf4()`; default: f32. */
  readonly quantizer?: Method;
}

/**
 * Trains the principal part of each matrix (PiSSA, Meng et al. 2024, eq. 2 to 4): of W = U·S·Vᵀ, B = Uᵣ·√(Sᵣ/s) and
 * A = √(Sᵣ/s)·Vᵣᵀ, and the frozen base becomes W - s·B·A, so that the model starts where it was. With a `quantizer` the
 * residual is quantized, which loses less than quantizing W. The base must be float.
 * Memory: the residual in place of W, and a second pair, A₀ and B₀, which saving and taking off need.
 * @throws ConfigError for iterations out of range or a quantizer that is none
 * @example await adapt(model, lora({ rank: 16, init: pissa({ iterations: 4 }) }), { at: 'all-linear' });
 */
export function pissa(options: PissaOptions = {}): Initializer {
  checkOptions('pissa', options, ['iterations', 'quantizer']);
  const { iterations, quantizer } = options;
  if (iterations !== undefined) checkCount('pissa', 'iterations', iterations);
  if (quantizer !== undefined) checkQuantizer('pissa', quantizer);
  return {
    name: iterations === undefined ? 'pissa' : `pissa_niter_${iterations}`,
    ...(quantizer && { options: { quantizer: quantizer.toJSON() } }),
    rewrites: quantizer === undefined ? 'residual' : 'quantized',
    // A sketch is drawn: nobody else makes the same one.
    repeatable: iterations === undefined && quantizer === undefined,
    portable: true,
    ...(quantizer && { check: ({ site, model }) => quantizer.validate?.(site, model) }),
    linear: async (context) => withResidual(await principal(context, iterations), context, quantizer),
  };
}

async function principal(context: InitContext, iterations: number | undefined): Promise<InitialPair> {
  const { weight, rank, scale, draw, aPath } = context;
  const dense = weight.dense();
  try {
    const factors = await (iterations === undefined
      ? svd(dense)
      : truncatedSvd(dense, { rank, iterations, noise: draw.at(`${aPath}#init`) }));
    return splitFactors(factors, rank, scale);
  } finally {
    dense.dispose();
  }
}

/** The pair with s·B·A = Uᵣ·Sᵣ·Vᵣᵀ, the singular values shared evenly. Takes the factors over. */
export function splitFactors({ u, s, v }: Svd, rank: number, scale: number): { a: Tensor2D; b: Tensor2D } {
  const pair = tidy(() => {
    const roots = sqrt(mul(slice(s, [0], [rank]), 1 / scale));
    const top = (vectors: Tensor2D): Tensor2D => mul(slice(vectors, [0, 0], [vectors.shape[0], rank]), roots) as Tensor2D;
    return { a: transpose(top(v)) as Tensor2D, b: top(u) };
  });
  for (const tensor of [u, s, v]) tensor.dispose();
  return pair;
}
