import * as tf from '@tensorflow/tfjs-core';
import type { Tensor } from '@tensorflow/tfjs-core';

type Shape = [number, number, number, number];

/** A filter as one without dilations that does the same: its taps with zeros between them. */
export interface Spread {
  /** Of the filter with its zeros. */
  readonly shape: Shape;
  /** filter [height, width, in, out] -> of `shape`. */
  taps(filter: Tensor): Tensor;
  /** What lies at the taps' places, of the filter's own shape. */
  pick(wide: Tensor): Tensor;
}

export function spreadOf(filterShape: readonly number[], dilations: readonly [number, number]): Spread {
  const [height, width, inside, outside] = filterShape as Shape;
  const [down, across] = dilations;
  const shape: Shape = [(height - 1) * down + 1, (width - 1) * across + 1, inside, outside];
  const apart = (x: Tensor, [outer, side, inner]: [number, number, number], step: number): Tensor =>
    tf.slice(
      tf.reshape(
        tf.pad(tf.reshape(x, [outer * side, 1, inner]), [
          [0, 0],
          [0, step - 1],
          [0, 0],
        ]),
        [outer, side * step, inner],
      ),
      [0, 0, 0],
      [outer, (side - 1) * step + 1, inner],
    );
  const places = (count: number, step: number): Tensor => tf.range(0, count * step, step, 'int32');
  return {
    shape,
    taps: (filter) =>
      tf.tidy(() => {
        const rows = apart(filter, [1, height, width * inside * outside], down);
        return tf.reshape(apart(rows, [shape[0], width, inside * outside], across), shape);
      }),
    pick: (wide) => tf.tidy(() => tf.gather(tf.gather(wide, places(height, down)), places(width, across), 1)),
  };
}
