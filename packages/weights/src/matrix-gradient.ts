import { addProduct, matMul, withGradient, type Parameter, type Tensor, type Tensor2D } from '@niwaki/tensor';
import type { Call } from './call.ts';

interface Matrix {
  readonly parameter: Parameter;
  /** What the tape knows the parameter by. */
  readonly watched: Tensor;
  readonly call: Call;
}

/**
 * y as it is, with dyᵀ·x for the matrix behind it, added to the sum so far where the call has one. Keeps x until then.
 * @param x [rows, in] what the matrix was applied to
 * @param y [rows, out] what it gave, with its own gradient for x
 */
export const withMatrixGradient = (x: Tensor2D, y: Tensor2D, { parameter, watched, call }: Matrix): Tensor2D =>
  withGradient(
    [y, watched],
    (save) => {
      save([x]);
      return y.clone();
    },
    (dy, [saved]) => {
      const sum = call.takeGradient(parameter);
      return [dy, sum === undefined ? matMul(dy as Tensor2D, saved as Tensor2D, true, false) : addProduct(sum, dy, saved!)];
    },
  ) as Tensor2D;
