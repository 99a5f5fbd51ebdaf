import { gather, matMul, mul, slice, tidy, transpose, type Parameter, type Tensor2D } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';

/**
 * scale·(B·A)ᵀ, what an embedding's adapter adds to its table, never formed.
 * @param a [rank, vocabulary]
 * @param b [width, rank]
 */
export function embeddingDelta(a: Parameter, b: Parameter, scale: number): Weight {
  const [rank, vocabulary] = a.shape as [number, number];
  return {
    kind: 'low-rank',
    options: { rank, scale, transposed: true },
    shape: [vocabulary, b.shape[0]!],
    parts: { a, b },
    apply: (x, call) => mul(matMul(matMul(x, call.value(b) as Tensor2D), call.value(a) as Tensor2D), scale) as Tensor2D,
    dense: ([from, to] = [0, vocabulary]) =>
      tidy(() => {
        const rows = slice(a.read() as Tensor2D, [0, from], [rank, to - from]);
        return mul(matMul(rows, b.read() as Tensor2D, true, true), scale) as Tensor2D;
      }),
    lookup: (ids, call) =>
      mul(matMul(transpose(gather(call.value(a), ids, 1)) as Tensor2D, call.value(b) as Tensor2D, false, true), scale) as Tensor2D,
  };
}
