import { gather, matMul, mul, ShapeError, slice, tidy, withGradient, type Parameter, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import type { Call } from './call.ts';
import { observe } from './observe.ts';
import type { Weight } from './weight.ts';

export interface LowRankOptions {
  /** [rank, in] */
  readonly a: Parameter;
  /** [out, rank] */
  readonly b: Parameter;
  /** Factor of the product: alpha / rank in LoRA. */
  readonly scale?: number;
}

/**
 * The matrix scale · b·a as a weight that is never formed: rank·(out + in) entries stored. The factors belong to whoever
 * made them (an adapter); this is a way to read them.
 */
export function lowRank({ a, b, scale = 1 }: LowRankOptions): Weight {
  const [rank, width] = a.shape as [number, number];
  const out = b.shape[0]!;
  if (a.shape.length !== 2 || b.shape.length !== 2 || b.shape[1] !== rank) {
    throw new ShapeError(`a low-rank product needs a [rank, in] and b [out, rank], got [${a.shape}] and [${b.shape}]`, {
      a: a.shape,
      b: b.shape,
      paths: [a.path, b.path],
    });
  }
  const factors = (call: Call): [Tensor2D, Tensor2D] => [call.value(a) as Tensor2D, call.value(b) as Tensor2D];
  return {
    kind: 'low-rank',
    options: { rank, scale },
    shape: [out, width],
    parts: { a, b },
    apply(this: Weight, x, call) {
      const [av, bv] = factors(call);
      const tracked = call.tracks(a) || call.tracks(b);
      return observe(this, x, tracked ? product(x, av, bv, scale) : frozenProduct(x, av, bv, scale), call);
    },
    dense: (rows) =>
      tidy(() => {
        const bv = b.read() as Tensor2D;
        const some = rows === undefined ? bv : slice(bv, [rows[0], 0], [rows[1] - rows[0], rank]);
        return mul(matMul(some, a.read() as Tensor2D), scale) as Tensor2D;
      }),
    lookup: (ids: Tensor1D, call) => {
      const [av, bv] = factors(call);
      return mul(matMul(gather(bv, ids) as Tensor2D, av), scale) as Tensor2D;
    },
  };
}

const product = (x: Tensor2D, a: Tensor2D, b: Tensor2D, scale: number): Tensor2D =>
  mul(matMul(matMul(x, a, false, true), b, false, true), scale) as Tensor2D;

/** Keeps neither x nor x·aᵀ: nothing needs the factors' gradients. */
function frozenProduct(x: Tensor2D, a: Tensor2D, b: Tensor2D, scale: number): Tensor2D {
  return withGradient(
    [x],
    (save) => {
      save([a, b]);
      return tidy(() => product(x, a, b, scale));
    },
    (dy, [savedA, savedB]) => [tidy(() => mul(matMul(matMul(dy, savedB!), savedA!), scale))],
  ) as Tensor2D;
}
