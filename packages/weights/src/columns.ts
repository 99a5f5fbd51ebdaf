import { gather, mul, tensor1d, withGradient, type Tensor1D, type Tensor2D } from '@niwaki/tensor';

/** Columns in another order. Backward keeps the order alone. */
export function reorder(x: Tensor2D, order: Tensor1D, inverse: Int32Array): Tensor2D {
  return withGradient(
    [x],
    () => gather(x, order, 1),
    (dy) => [gather(dy, tensor1d(inverse, 'int32'), 1)],
  ) as Tensor2D;
}

/** Columns times a factor each. Backward keeps the factors, and not x. */
export function scaleColumns(x: Tensor2D, factors: Tensor1D): Tensor2D {
  return withGradient(
    [x],
    (save) => {
      save([factors]);
      return mul(x, factors);
    },
    (dy, [saved]) => [mul(dy, saved!)],
  ) as Tensor2D;
}

export function inverseOf(order: Int32Array): Int32Array {
  const inverse = new Int32Array(order.length);
  for (let k = 0; k < order.length; k++) inverse[order[k]!] = k;
  return inverse;
}
