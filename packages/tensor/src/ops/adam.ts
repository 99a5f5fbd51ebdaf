import { add, div, expm1, mul, neg, sqrt, square, tidy, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';
import { choose } from './choose.ts';

/**
 * One step of Adam's moments. Inputs gradient, momentum, variance of equal shape; correction1, correction2 scalars
 * (1 - beta^t, on the device since t counts applied updates); ok a scalar. Outputs [direction, momentum, variance],
 * direction = (momentum / correction1) / (sqrt(variance / correction2) + eps); where ok is 0 the moments are the old ones,
 * bit for bit, and the direction means nothing.
 */
export const adamOp: Op<AdamInputs, { beta1: number; beta2: number; eps: number }> = {
  kernelName: 'NiwakiAdam',
  reference: ({ gradient, momentum, variance, correction1, correction2, ok }, { beta1, beta2, eps }) => {
    const m = add(mul(momentum, beta1), mul(gradient, 1 - beta1));
    const v = add(mul(variance, beta2), mul(square(gradient), 1 - beta2));
    const direction = div(div(m, correction1), add(sqrt(div(v, correction2)), eps));
    return [direction, choose(ok as Scalar, m, momentum), choose(ok as Scalar, v, variance)];
  },
};

export interface AdamInputs {
  gradient: Tensor;
  momentum: Tensor;
  variance: Tensor;
  correction1: Tensor;
  correction2: Tensor;
  ok: Tensor;
  [name: string]: Tensor;
}

/** Adam's direction and its new moments (Kingma & Ba 2015, alg. 1), the old ones where the step is refused. Not differentiable. */
export function adamStep(
  inputs: AdamInputs,
  options: { beta1: number; beta2: number; eps: number },
): { direction: Tensor; momentum: Tensor; variance: Tensor } {
  const [direction, momentum, variance] = runOp(adamOp, inputs, options) as [Tensor, Tensor, Tensor];
  return { direction, momentum, variance };
}

/**
 * 1 - beta^t, by which Adam divides a moment that started at zero. As -(e^(t·ln beta) - 1): the difference itself would
 * lose half its digits in the first steps.
 * @param updates applied updates so far including this one, a scalar on the device
 */
export const biasCorrection = (beta: number, updates: Scalar): Scalar => tidy(() => neg(expm1(mul(updates, Math.log(beta)))) as Scalar);
