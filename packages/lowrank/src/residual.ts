import { denseParameter, matMul, mul, sub, tidy, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import { denseWeight } from '@niwaki/weights';
import type { InitContext, InitialPair } from './initialization.ts';
import { quantizedBy } from './requantize.ts';

/** W - s·B·A, f32 [out, in], new. */
export function residualOf({ weight, scale }: Pick<InitContext, 'weight' | 'scale'>, { a, b }: Pick<InitialPair, 'a' | 'b'>): Tensor2D {
  return tidy(() => sub(weight.dense(), mul(matMul(b, a), scale)) as Tensor2D);
}

/**
 * The pair with what it leaves of the base: in f32, halves too, since rounding the residual would move the start, or as
 * the quantizer stores it. Frees the pair when that fails.
 */
export async function withResidual(pair: InitialPair, context: InitContext, quantizer?: Method): Promise<InitialPair> {
  const { site } = context;
  const residual = residualOf(context, pair);
  if (quantizer === undefined) return { ...pair, base: denseWeight(denseParameter(`${site.path}.weight`, residual, { role: 'matrix' })) };
  try {
    return { ...pair, base: await quantizedBy(quantizer, site, residual) };
  } catch (error) {
    pair.a.dispose();
    pair.b.dispose();
    throw error;
  } finally {
    residual.dispose();
  }
}
