import { add, denseParameter, matMul, slice, sub, tidy, unwritten, withGradient, type Parameter, type Tensor2D } from '@niwaki/tensor';
import type { Call } from './call.ts';
import { denseWeight, frozenMatMul } from './dense.ts';
import { decodedMatMul } from './masked.ts';
import { observe } from './observe.ts';
import { columnProduct, rowProduct, type Chosen } from './slice.ts';
import type { Weight } from './weight.ts';

export interface TrainedSliceOptions {
  /** What of the matrix trains: columns or rows. */
  readonly axis: 'columns' | 'rows';
  readonly chosen: Chosen;
  /** Of the parameter that trains. */
  readonly path: string;
  /** Its first value, taken over; default what the matrix holds there. */
  readonly value?: Tensor2D;
}

/** A matrix of which a slice trains where it lies. Read as a weight it is what it was before the training. */
export interface TrainedSlice extends Weight {
  /** The slice as it is now, [out, count] or [count, in]; whatever is written to it is in the matrix at once. Not among the parts. */
  readonly slice: Parameter;
  /** The slice as it was. */
  readonly initial: Parameter;
  /** x·Wᵀ with the slice as it is now: one product, trained or not. Columns keep their own part of x for the backward pass, rows x. */
  trained(x: Tensor2D, call: Call): Tensor2D;
  /** The matrix as it is now, f32 [out, in]: a new tensor. */
  now(): Tensor2D;
}

/**
 * A float matrix with some columns or rows that train in it, instead of beside it (S²FT, Yang et al. 2024, in place). The
 * gradient has the slice's shape, and everything outside stays bit for bit.
 *
 * Parts: `weight`, the matrix as it is now; `initial`, the slice as it was; the places of `chosen`. Beside the matrix the
 * slice is stored twice, 8 bytes an entry from the first update on: as what the tape knows, and as what the training is
 * taken back by. Tensors do not change: each update makes the matrix anew, 8 bytes an entry of it while that lasts. The
 * products of `apply`, which is what the matrix was, put the slice back first, in each direction.
 * @param matrix f32 [out, in], taken over
 */
export function trainedSlice(matrix: Parameter, { axis, chosen, path, value }: TrainedSliceOptions): TrainedSlice {
  const columns = axis === 'columns';
  const along = columns ? 1 : 0;
  const [out, width] = matrix.shape as [number, number];
  const now = (): Tensor2D => matrix.read() as Tensor2D;
  const put = (values: Tensor2D): Tensor2D => chosen.put(now(), values, along);
  const initial = denseParameter(`${path}.initial`, chosen.pick(now(), along), { role: 'statistic' });
  const own = denseParameter(path, value ?? initial.read().clone(), {
    role: 'values',
    trainable: true,
    written: (next) => matrix.write(put(next as Tensor2D)),
  });
  if (value !== undefined) matrix.write(put(value));
  const before = (): Tensor2D => put(initial.read() as Tensor2D);

  const weight: TrainedSlice = {
    kind: 'trained-slice',
    options: { axis, count: chosen.count },
    shape: [out, width],
    parts: { weight: matrix, initial, ...chosen.parameters },
    exact: true,
    slice: own,
    initial,
    apply: (x, call) => observe(weight, x, decodedMatMul(x, before), call),
    dense: (rows) => tidy(() => (rows === undefined ? before() : slice(before(), [rows[0], 0], [rows[1] - rows[0], width]))),
    encode: (dense, target) => denseWeight(matrix).encode!(dense, target),
    trained: (x, call) => {
      const watched = call.watched(own);
      if (watched !== undefined) return trainedProduct(x, now(), watched as Tensor2D, { columns, chosen, unread: call.unread ?? false });
      const y = frozenMatMul(x, now(), call);
      if (call.view.of(own).kind === 'plain') return y;
      // Read otherwise than stored (perturbed, offset): the difference is multiplied beside it.
      const moved = sub(call.value(own), own.read()) as Tensor2D;
      return add(y, (columns ? columnProduct : rowProduct)(x, moved, chosen, { tracked: call.tracks(own) }));
    },
    now: () => now().clone(),
  };
  return weight;
}

/** x·Wᵀ with a gradient for a slice of W, which the tape knows as `watched`. */
function trainedProduct(
  x: Tensor2D,
  w: Tensor2D,
  watched: Tensor2D,
  { columns, chosen, unread }: { readonly columns: boolean; readonly chosen: Chosen; readonly unread: boolean },
): Tensor2D {
  return withGradient(
    [x, watched],
    (save) => {
      save([w, columns ? chosen.pick(x, 1) : x]);
      return unread ? unwritten(x.shape[0], w.shape[0]) : matMul(x, w, false, true);
    },
    (dy, [matrix, given]) => {
      const own = columns ? (dy as Tensor2D) : chosen.pick(dy as Tensor2D, 1);
      return [matMul(dy as Tensor2D, matrix as Tensor2D), matMul(own, given as Tensor2D, true, false)];
    },
  ) as Tensor2D;
}
