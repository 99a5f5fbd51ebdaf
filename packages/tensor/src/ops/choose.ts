import { cast, where, type Scalar, type Tensor } from '../tfjs.ts';
import { runOp, type Op } from '../op.ts';

/** Inputs ok [] f32 (0 or 1), next and old of one shape and dtype. Output [next where ok, else old], bit for bit. */
export const chooseOp: Op<{ ok: Tensor; next: Tensor; old: Tensor }, object> = {
  kernelName: 'NiwakiChoose',
  reference: ({ ok, next, old }) => [where(cast(ok, 'bool'), next, old)],
};

/**
 * The new value where `ok` is 1, the old one bit for bit where it is 0: a step is refused on the device without reading
 * back (a product would not do: 0 · NaN is NaN). Not differentiable.
 */
export function choose<T extends Tensor>(ok: Scalar, next: T, old: T): T {
  return runOp(chooseOp, { ok, next, old }, {})[0] as T;
}
