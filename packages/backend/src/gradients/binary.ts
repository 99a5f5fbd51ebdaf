import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, Tensor } from '@tensorflow/tfjs-core';
import { unbroadcast } from './unbroadcast.ts';

type Side = (dy: Tensor, a: Tensor, b: Tensor, y: Tensor | undefined) => Tensor;

const sides: Record<string, readonly [a: Side, b: Side]> = {
  [tf.Add]: [(dy) => dy, (dy) => dy],
  [tf.Sub]: [(dy) => dy, (dy) => tf.neg(dy)],
  [tf.Multiply]: [(dy, _, b) => tf.mul(dy, b), (dy, a) => tf.mul(dy, a)],
  [tf.RealDiv]: [(dy, _, b) => tf.div(dy, b), (dy, a, b) => tf.neg(tf.div(tf.mul(dy, a), tf.square(b)))],
  [tf.SquaredDifference]: [(dy, a, b) => tf.mul(dy, tf.mul(tf.sub(a, b), 2)), (dy, a, b) => tf.mul(dy, tf.mul(tf.sub(b, a), 2))],
  // Where both sides are equal the first takes the gradient.
  [tf.Maximum]: [(dy, a, b) => only(tf.greaterEqual(a, b), dy), (dy, a, b) => only(tf.less(a, b), dy)],
  [tf.Minimum]: [(dy, a, b) => only(tf.lessEqual(a, b), dy), (dy, a, b) => only(tf.greater(a, b), dy)],
  [tf.Pow]: [
    (dy, a, b) => tf.mul(dy, tf.mul(b, tf.pow(a, tf.sub(b, 1)))),
    (dy, a, _, y) => tf.mul(dy, only(tf.greater(a, 0), tf.mul(y!, tf.log(tf.maximum(a, 1e-38))))),
  ],
};

const only = (condition: Tensor, dy: Tensor): Tensor => tf.where(condition, dy, tf.zerosLike(dy));
const float = (x: Tensor): Tensor => tf.cast(x, 'float32');

/** A comparison stands between a mask and what it was made from: the path exists and carries nothing. */
const comparisons: readonly string[] = [
  tf.Equal,
  tf.NotEqual,
  tf.Greater,
  tf.GreaterEqual,
  tf.Less,
  tf.LessEqual,
  tf.LogicalAnd,
  tf.LogicalOr,
];

export const binaryGradients: readonly GradConfig[] = [
  ...Object.entries(sides).map(([kernelName, [ofA, ofB]]) => ({
    kernelName,
    inputsToSave: ['a', 'b'],
    ...(kernelName === tf.Pow ? { outputsToSave: [true] } : {}),
    gradFunc: (dy: Tensor | Tensor[], saved: Tensor[]) => {
      const [a, b, y] = saved as [Tensor, Tensor, Tensor | undefined];
      return {
        a: () => unbroadcast(ofA(dy as Tensor, float(a), float(b), y), a.shape),
        b: () => unbroadcast(ofB(dy as Tensor, float(a), float(b), y), b.shape),
      };
    },
  })),
  ...comparisons.map((kernelName) => ({
    kernelName,
    inputsToSave: ['a', 'b'],
    gradFunc: (_: Tensor | Tensor[], [a, b]: Tensor[]) => ({ a: () => tf.zeros(a!.shape), b: () => tf.zeros(b!.shape) }),
  })),
  { kernelName: tf.LogicalNot, gradFunc: (dy) => ({ x: () => tf.zerosLike(dy as Tensor) }) },
  {
    kernelName: tf.Select,
    inputsToSave: ['condition'],
    gradFunc: (dy, [condition]) => ({
      condition: () => tf.zeros(condition!.shape),
      t: () => only(condition!, dy as Tensor),
      e: () => only(tf.logicalNot(condition!), dy as Tensor),
    }),
  },
];
