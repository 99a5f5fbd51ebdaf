import { add, div, expm1, mul, neg, sqrt, square, tidy, type Scalar, type Tensor } from '../tfjs.ts';
import { heldOnce, runOp, type Op } from '../op.ts';
import { choose } from './choose.ts';

/**
 * One step of Adam's moments. Inputs gradient, momentum, variance of equal shape; correction1, correction2 scalars
 * (1 - beta^t, on the device since t counts applied updates); ok a scalar. Outputs [direction, momentum, variance],
 * direction = (momentum / correction1) / (sqrt(variance / correction2) + eps); where ok is 0 the moments are the old ones,
 * bit for bit, and the direction means nothing.
 * `overwrite`: nobody reads gradient and moments again, so that a kernel may put the direction and the new moments into
 * their memory.
 */
export const adamOp: Op<AdamInputs, AdamAttributes & { overwrite: boolean }> = {
  kernelName: 'NiwakiAdam',
  reference: ({ gradient, momentum, variance, correction1, correction2, ok }, { beta1, beta2, eps }) => {
    const m = add(mul(momentum, beta1), mul(gradient, 1 - beta1));
    const v = add(mul(variance, beta2), mul(square(gradient), 1 - beta2));
    const direction = div(div(m, correction1), add(sqrt(div(v, correction2)), eps));
    return [direction, choose(ok as Scalar, m, momentum), choose(ok as Scalar, v, variance)];
  },
};

export interface AdamAttributes {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
}

export interface AdamInputs {
  gradient: Tensor;
  momentum: Tensor;
  variance: Tensor;
  correction1: Tensor;
  correction2: Tensor;
  ok: Tensor;
  [name: string]: Tensor;
}

/**
 * Adam's direction and its new moments (Kingma & Ba 2015, alg. 1), the old ones where the step is refused. Not differentiable.
 * @param options `owned`: whether gradient and moments may be written over, so that on wasm and WebGPU the results take their
 * memory where nothing else holds it; default false, with memory for three more tensors of the gradient's shape
 */
export function adamStep(
  inputs: AdamInputs,
  { owned = false, ...attributes }: AdamAttributes & { readonly owned?: boolean },
): { direction: Tensor; momentum: Tensor; variance: Tensor } {
  const overwrite = owned && heldOnce(inputs.gradient, inputs.momentum, inputs.variance);
  const [direction, momentum, variance] = runOp(adamOp, inputs, { ...attributes, overwrite }) as [Tensor, Tensor, Tensor];
  return { direction, momentum, variance };
}

/**
 * 1 - beta^t, by which Adam divides a moment that started at zero. As -(e^(t·ln beta) - 1): the difference itself would
 * lose half its digits in the first steps.
 * @param updates applied updates so far including this one, a scalar on the device
 */
export const biasCorrection = (beta: number, updates: Scalar): Scalar => tidy(() => neg(expm1(mul(updates, Math.log(beta)))) as Scalar);
