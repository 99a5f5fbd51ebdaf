import {
  denseParameter,
  gather,
  matMul,
  ShapeError,
  slice,
  tensor1d,
  tidy,
  unwritten,
  withGradient,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { asProduct } from './frozen.ts';
import { withMatrixGradient } from './matrix-gradient.ts';
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
    apply: asProduct(
      (x, call) => {
        const w = call.value(parameter) as Tensor2D;
        const y = frozenMatMul(x, w, call);
        return observe(weight, x, call.tracks(parameter) ? withMatrixGradient(x, y, { parameter, watched: w, call }) : y, call);
      },
      (_, call) => (call.tracks(parameter) ? undefined : { parts: { weight: call.value(parameter) } }),
    ),
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

/** x·wᵀ with a gradient for x alone: holds w, no copy of it, and not x, where matMul would save both for the tape. */
export function frozenMatMul(x: Tensor2D, w: Tensor2D, { unread = false }: Pick<Call, 'unread'> = {}): Tensor2D {
  return withGradient(
    [x],
    (save) => {
      // Read through a view, w may be a tensor of this pass alone.
      save([w]);
      return unread ? unwritten(x.shape[0], w.shape[0]) : matMul(x, w, false, true);
    },
    (dy, [saved]) => [matMul(dy, saved!)],
  ) as Tensor2D;
}
