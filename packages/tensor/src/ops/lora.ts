import { add, matMul, mul, type Tensor, type Tensor2D } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { unwritten } from './unwritten.ts';

/**
 * Inputs base [rows, out], x [rows, in], a [rank, in], b [out, rank]. Outputs [base + scale·(x·aᵀ)·bᵀ, x·aᵀ [rows, rank]];
 * with `unread` the first is unwritten. The product b·a is never formed.
 */
export const loraOp: Op<{ base: Tensor; x: Tensor; a: Tensor; b: Tensor }, { scale: number; unread: boolean }> = {
  kernelName: 'NiwakiLora',
  reference: ({ base, x, a, b }, { scale, unread }) => {
    const inner = matMul(x, a, false, true);
    if (unread) return [unwritten(base.shape[0]!, base.shape[1]!), inner];
    return [add(base, matMul(mul(inner, scale), b, false, true)), inner];
  },
};

/** Inputs dy [rows, out], x, a, b as forward, inner = x·aᵀ. Outputs [dx, da, db]. */
export const loraGradOp: Op<{ dy: Tensor; x: Tensor; a: Tensor; b: Tensor; inner: Tensor }, { scale: number }> = {
  kernelName: 'NiwakiLoraGrad',
  reference: ({ dy, x, a, b, inner }, { scale }) => {
    const dInner = mul(matMul(dy, b), scale);
    return [matMul(dInner, a), matMul(dInner, x, true, false), mul(matMul(dy, inner, true, false), scale)];
  },
};

export interface LoraTailOptions {
  readonly scale: number;
  /** An elementwise linear map of x that gives the same result each time it is called: dropout. */
  readonly input?: (x: Tensor) => Tensor;
  /** Whether a and b want gradients, default true. Without, x and x·aᵀ are not kept. */
  readonly factorGradients?: boolean;
  /** Only the gradients are asked for: the result is `unwritten`, and entries of `base` are not read. */
  readonly unread?: boolean;
}

/**
 * The tail of a low-rank adapter: base + scale·(x·aᵀ)·bᵀ (Hu et al. 2021, eq. 3) as one node of the tape.
 * Saves a, b, x (shared with whoever else holds it) and x·aᵀ; with `input`, saves the raw x and maps it again in the
 * backward pass, so that a dropped copy of x is not kept.
 * @param base [rows, out]
 * @param x [rows, in]
 * @param a [rank, in]
 * @param b [out, rank]
 */
export function loraTail(base: Tensor2D, x: Tensor2D, a: Tensor2D, b: Tensor2D, options: LoraTailOptions): Tensor2D {
  const { scale, input, factorGradients = true, unread = false } = options;
  const mapped = (value: Tensor): Tensor => (input === undefined ? value : input(value));
  if (!factorGradients) {
    return withGradient(
      [base, x],
      (save) => {
        save([a, b]);
        return unread ? unwritten(...base.shape) : runOp(loraOp, { base, x: mapped(x), a, b }, { scale, unread })[0]!;
      },
      (dy, [sa, sb]) => [dy, mapped(matMul(mul(matMul(dy as Tensor2D, sb as Tensor2D), scale), sa as Tensor2D))],
    ) as Tensor2D;
  }
  return withGradient(
    [base, x, a, b],
    (save) => {
      const [y, inner] = runOp(loraOp, { base, x: mapped(x), a, b }, { scale, unread });
      save([x, a, b, inner!]);
      return y!;
    },
    (dy, saved) => {
      const [sx, sa, sb, inner] = saved as [Tensor, Tensor, Tensor, Tensor];
      const [dx, da, db] = runOp(loraGradOp, { dy, x: mapped(sx), a: sa, b: sb, inner }, { scale });
      return [dy, mapped(dx!), da!, db!];
    },
  ) as Tensor2D;
}
