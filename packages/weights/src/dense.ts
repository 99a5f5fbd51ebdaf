import {
  denseParameter,
  gather,
  matMul,
  ShapeError,
  slice,
  tensor1d,
  tidy,
  withGradient,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Weight } from './weight.ts';
import { observe } from './observe.ts';

/**
 * A matrix stored as it is: one f32 parameter (out, in), 4 bytes an entry. Trained, the tape gives its gradient and keeps
 * x; frozen, the backward pass keeps nothing but the matrix itself.
 */
export function denseWeight(parameter: Parameter): Weight {
  const shape = matrixShape(parameter);
  const weight: Weight = {
    kind: 'dense',
    options: {},
    shape,
    parts: { weight: parameter },
    matrix: parameter,
    exact: true,
    apply: (x, call) => {
      const w = call.value(parameter) as Tensor2D;
      // matMul would save both operands for the tape.
      return observe(weight, x, call.tracks(parameter) ? matMul(x, w, false, true) : frozenMatMul(x, w), call);
    },
    dense: (rows) => {
      const w = parameter.read() as Tensor2D;
      return rows === undefined ? w.clone() : slice(w, [rows[0], 0], [rows[1] - rows[0], shape[1]]);
    },
    lookup: (ids, call) => gather(call.value(parameter), ids) as Tensor2D,
    encode: async (dense, path) => denseWeight(denseParameter(`${path}.weight`, dense.clone(), { role: parameter.role })),
    take: async (rows, path) => {
      const taken = tidy(() => gather(parameter.read() as Tensor2D, tensor1d(rows, 'int32')));
      return denseWeight(denseParameter(`${path}.weight`, taken, { role: parameter.role }));
    },
  };
  return weight;
}

function matrixShape({ path, shape }: Parameter): readonly [number, number] {
  if (shape.length === 2) return [shape[0]!, shape[1]!];
  throw new ShapeError(`a weight is a matrix [out, in]; '${path}' has the shape [${shape}]`, { path, given: shape });
}

/** x·wᵀ for a w that nothing differentiates: holds w, no copy of it, and not x. */
export function frozenMatMul(x: Tensor2D, w: Tensor2D): Tensor2D {
  return withGradient(
    [x],
    (save) => {
      // Read through a view, w may be a tensor of this pass alone.
      save([w]);
      return matMul(x, w, false, true);
    },
    (dy, [saved]) => [matMul(dy, saved!)],
  ) as Tensor2D;
}
