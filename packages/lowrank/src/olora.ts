import { checkOptions, matMul, qr, slice, tidy, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import type { InitContext, InitialPair, Initializer } from './initialization.ts';
import { checkQuantizer } from './requantize.ts';
import { withResidual } from './residual.ts';

export interface OloraOptions {
  /** What the residual is stored as, a method of quantization such as `nf4()`; default: f32. */
  readonly quantizer?: Method;
}

/**
 * An orthonormal start (OLoRA, Büyükakyüz 2024): of the thin W = Q·R, B = the first columns of Q and A = the first rows
 * of R, and the frozen base becomes W - s·B·A, so that the model starts where it was. The first r columns of Q depend on
 * the first r columns of W alone: O(out·r²) on the host. The base must be float. Memory as PiSSA.
 * @throws ConfigError for a quantizer that is none
 * @example await adapt(model, lora({ rank: 16, init: 'olora' }), { at: 'all-linear' });
 */
export function olora(options: OloraOptions = {}): Initializer {
  checkOptions('olora', options, ['quantizer']);
  const { quantizer } = options;
  if (quantizer !== undefined) checkQuantizer('olora', quantizer);
  return {
    name: 'olora',
    ...(quantizer && { options: { quantizer: quantizer.toJSON() } }),
    rewrites: quantizer === undefined ? 'residual' : 'quantized',
    repeatable: quantizer === undefined,
    portable: true,
    ...(quantizer && { check: ({ site, model }) => quantizer.validate?.(site, model) }),
    linear: async (context) => withResidual(await orthonormal(context), context, quantizer),
  };
}

async function orthonormal({ weight, out, rank }: InitContext): Promise<InitialPair> {
  const dense = weight.dense();
  const first = tidy(() => slice(dense, [0, 0], [out, rank]));
  try {
    const { q, r } = await qr(first);
    r.dispose();
    return { a: tidy(() => matMul(q, dense, true, false) as Tensor2D), b: q };
  } finally {
    first.dispose();
    dense.dispose();
  }
}
