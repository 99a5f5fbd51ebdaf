import { matMul, slice, withGradient, type Range, type Tensor2D } from '@niwaki/tensor';
import type { Call } from './call.ts';
import type { Weight } from './weight.ts';

/**
 * y, watched on its way back: whoever asked for the gradient of a frozen matrix is given dyᵀ·x in the backward pass, by
 * row ranges and only if it looks. The price, x kept until then, is paid for wanted weights alone.
 * @param x [rows, in] what the weight was applied to
 * @param y [rows, out] what it gave
 */
export function observe(weight: Weight, x: Tensor2D, y: Tensor2D, call: Call): Tensor2D {
  if (!call.wants(weight)) return y;
  return withGradient(
    [y],
    (save) => {
      save([x]);
      return y.clone();
    },
    (dy, [saved]) => {
      call.give(weight, (rows) => matMul(rows === undefined ? dy : columns(dy as Tensor2D, rows), saved!, true, false));
      return [dy];
    },
  ) as Tensor2D;
}

const columns = (dy: Tensor2D, [from, to]: Range): Tensor2D => slice(dy, [0, from], [dy.shape[0], to - from]);
