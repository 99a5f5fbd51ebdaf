import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, Tensor } from '@tensorflow/tfjs-core';
import { unbroadcast } from './unbroadcast.ts';

/** Gradients of sums, extremes, running sums and products. */
export const reductionGradients: readonly GradConfig[] = [
  {
    kernelName: tf.Sum,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => ({ x: () => spread(dy as Tensor, x!, axesOf(attrs, x!)) }),
  },
  {
    kernelName: tf.Mean,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => {
      const axes = axesOf(attrs, x!);
      const count = axes.reduce((product, axis) => product * x!.shape[axis]!, 1);
      return { x: () => spread(tf.div(dy as Tensor, count), x!, axes) };
    },
  },
  // Every entry that ties for the extreme takes the whole gradient, as tfjs has it.
  ...[tf.Max, tf.Min].map((kernelName) => ({
    kernelName,
    inputsToSave: ['x'],
    outputsToSave: [true],
    gradFunc: (dy: Tensor | Tensor[], [x, y]: Tensor[], attrs: object) => ({
      x: () => {
        const axes = axesOf(attrs, x!);
        const at = tf.equal(x!, tf.reshape(y!, kept(x!, axes)));
        return tf.mul(tf.reshape(dy as Tensor, kept(x!, axes)), tf.cast(at, 'float32'));
      },
    }),
  })),
  {
    kernelName: tf.Prod,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => ({ x: () => prodGradient(dy as Tensor, x!, axesOf(attrs, x!)) }),
  },
  {
    kernelName: tf.Cumsum,
    gradFunc: (dy, _, attrs) => {
      const { axis, exclusive, reverse } = attrs as { axis: number; exclusive: boolean; reverse: boolean };
      return { x: () => tf.cumsum(dy as Tensor, axis, exclusive, !reverse) };
    },
  },
  {
    kernelName: tf.BatchMatMul,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, [a, b], attrs) => {
      const { transposeA, transposeB } = attrs as { transposeA: boolean; transposeB: boolean };
      const g = dy as Tensor;
      return {
        a: () => unbroadcast(transposeA ? tf.matMul(b!, g, transposeB, true) : tf.matMul(g, b!, false, !transposeB), a!.shape),
        b: () => unbroadcast(transposeB ? tf.matMul(g, a!, true, transposeA) : tf.matMul(a!, g, !transposeA, false), b!.shape),
      };
    },
  },
];

// Max calls its axes otherwise than all the rest.
function axesOf(attrs: object, x: Tensor): number[] {
  const { axis, reductionIndices } = attrs as { axis?: number | number[]; reductionIndices?: number | number[] };
  return tf.util.parseAxisParam((reductionIndices ?? axis)!, x.shape);
}

/** The shape of x with its reduced axes kept as ones. */
const kept = (x: Tensor, axes: readonly number[]): number[] => x.shape.map((side, axis) => (axes.includes(axis) ? 1 : side));

const spread = (dy: Tensor, x: Tensor, axes: readonly number[]): Tensor => tf.mul(tf.reshape(dy, kept(x, axes)), tf.ones(x.shape));

/** The product of the others, as (product of those before) · (product of those behind): exact where an entry is zero. */
function prodGradient(dy: Tensor, x: Tensor, axes: readonly number[]): Tensor {
  const others = x.shape.map((_, axis) => axis).filter((axis) => !axes.includes(axis));
  const order = [...others, ...axes];
  const flat = tf.reshape(tf.transpose(x, order), [-1, axes.reduce((product, axis) => product * x.shape[axis]!, 1)]);
  const rest = tf.mul(tf.cumprod(flat, 1, true, false), tf.cumprod(flat, 1, true, true));
  const scaled = tf.mul(rest, tf.reshape(dy, [-1, 1]));
  const back = tf.reshape(
    scaled,
    order.map((axis) => x.shape[axis]!),
  );
  return tf.transpose(
    back,
    order.map((_, axis) => order.indexOf(axis)),
  );
}
