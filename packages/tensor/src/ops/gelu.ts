import { add, erf, exp, mul, sigmoid, square, sub, type Tensor } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/** Which function goes by the name: x·Φ(x) with the normal distribution's Φ, or the tanh that stands for it in older code. */
export type GeluForm = 'erf' | 'tanh';

/** Input x of any shape. Output [gelu(x)]. */
export const geluOp: Op<{ x: Tensor }, { form: GeluForm }> = {
  kernelName: 'NiwakiGelu',
  reference: ({ x }, { form }) => [mul(x, shareOf(x, form))],
};

/** Inputs dy, x of one shape. Output [dx]. */
export const geluGradOp: Op<{ dy: Tensor; x: Tensor }, { form: GeluForm }> = {
  kernelName: 'NiwakiGeluGrad',
  reference: ({ dy, x }, { form }) => {
    const share = shareOf(x, form);
    const slope =
      form === 'erf'
        ? mul(exp(mul(square(x), -0.5)), 1 / Math.sqrt(2 * Math.PI))
        : mul(mul(share, sub(1, share)), mul(add(mul(square(x), 3 * cubic), 1), 2 * outer));
    return [mul(dy, add(share, mul(x, slope)))];
  },
};

const cubic = 0.044715;
const outer = Math.sqrt(2 / Math.PI);

/** The part of x that is let through. (1 + tanh u) / 2 is the sigmoid of 2u. */
const shareOf = (x: Tensor, form: GeluForm): Tensor =>
  form === 'erf' ? mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5) : sigmoid(mul(mul(x, add(mul(square(x), cubic), 1)), 2 * outer));

/**
 * The Gaussian error linear unit, entry by entry (Hendrycks & Gimpel 2016): x·Φ(x), or with `form: 'tanh'` half of x times
 * 1 + tanh(√(2/π)·(x + 0.044715·x³)). The two differ by up to 5e-4, so that a checkpoint wants the one it was trained with.
 * Saves x.
 */
export function gelu<T extends Tensor>(x: T, { form = 'erf' }: { form?: GeluForm } = {}): T {
  const valueOf = (of: Tensor): Tensor => runOp(geluOp, { x: of }, { form })[0]!;
  return withGradient(
    [x],
    (save) => {
      save([x]);
      return valueOf(x);
    },
    (dy, [saved]) => runOp(geluGradOp, { dy, x: saved! }, { form }),
    { remake: ([saved]) => valueOf(saved!) },
  ) as T;
}
