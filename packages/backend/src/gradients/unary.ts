import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, Tensor } from '@tensorflow/tfjs-core';

type Slope = (dy: Tensor, x: Tensor, attrs: Record<string, never>) => Tensor;

/** Gradients that are read off the input. */
const ofInput: Record<string, Slope> = {
  [tf.Abs]: (dy, x) => tf.mul(dy, tf.sign(x)),
  [tf.Cos]: (dy, x) => tf.neg(tf.mul(dy, tf.sin(x))),
  [tf.Sin]: (dy, x) => tf.mul(dy, tf.cos(x)),
  [tf.Erf]: (dy, x) => tf.mul(dy, tf.mul(tf.exp(tf.neg(tf.square(x))), 2 / Math.sqrt(Math.PI))),
  [tf.Log]: (dy, x) => tf.div(dy, x),
  [tf.Log1p]: (dy, x) => tf.div(dy, tf.add(x, 1)),
  [tf.Expm1]: (dy, x) => tf.mul(dy, tf.exp(x)),
  [tf.Neg]: (dy) => tf.neg(dy),
  [tf.Square]: (dy, x) => tf.mul(dy, tf.mul(x, 2)),
  [tf.Softplus]: (dy, x) => tf.mul(dy, tf.sigmoid(x)),
  [tf.ClipByValue]: (dy, x, attrs) => {
    const { clipValueMin, clipValueMax } = attrs as unknown as { clipValueMin: number; clipValueMax: number };
    return tf.where(tf.logicalAnd(tf.greaterEqual(x, clipValueMin), tf.lessEqual(x, clipValueMax)), dy, tf.zerosLike(dy));
  },
  [tf.LeakyRelu]: (dy, x, attrs) => tf.where(tf.greater(x, 0), dy, tf.mul(dy, (attrs as unknown as { alpha: number }).alpha)),
  [tf.Relu6]: (dy, x) => tf.where(tf.logicalAnd(tf.greater(x, 0), tf.less(x, 6)), dy, tf.zerosLike(dy)),
};

/** Gradients that are cheaper from the output. */
const ofOutput: Record<string, Slope> = {
  [tf.Exp]: (dy, y) => tf.mul(dy, y),
  [tf.Sqrt]: (dy, y) => tf.div(dy, tf.mul(y, 2)),
  [tf.Rsqrt]: (dy, y) => tf.mul(dy, tf.mul(tf.mul(y, tf.square(y)), -0.5)),
  [tf.Reciprocal]: (dy, y) => tf.neg(tf.mul(dy, tf.square(y))),
  [tf.Sigmoid]: (dy, y) => tf.mul(dy, tf.mul(y, tf.sub(1, y))),
  [tf.Tanh]: (dy, y) => tf.mul(dy, tf.sub(1, tf.square(y))),
  [tf.Relu]: (dy, y) => tf.where(tf.greater(y, 0), dy, tf.zerosLike(dy)),
  [tf.Elu]: (dy, y) => tf.mul(dy, tf.add(tf.minimum(y, 0), 1)),
  [tf.Softmax]: (dy, y, attrs) => {
    const { dim } = attrs as unknown as { dim: number };
    const weighted = tf.mul(dy, y);
    return tf.sub(weighted, tf.mul(tf.sum(weighted, dim, true), y));
  },
  [tf.LogSoftmax]: (dy, y, attrs) => {
    const { axis } = attrs as unknown as { axis: number };
    return tf.sub(dy, tf.mul(tf.sum(dy, axis, true), tf.exp(y)));
  },
};

/** Steps: no gradient passes, and none is an error either. */
const flat: readonly string[] = [tf.Sign, tf.Floor, tf.Ceil, tf.Round, tf.Step, tf.ZerosLike, tf.OnesLike];

// tfjs names the input of LogSoftmax and Softmax 'logits', and that of Exp and the rest 'x'.
const nameOf = (kernelName: string): string => (kernelName === tf.Softmax || kernelName === tf.LogSoftmax ? 'logits' : 'x');

export const unaryGradients: readonly GradConfig[] = [
  ...Object.entries(ofInput).map(([kernelName, slope]) => ({
    kernelName,
    inputsToSave: ['x'],
    gradFunc: (dy: Tensor | Tensor[], saved: Tensor[], attrs: object) => ({
      x: () => slope(dy as Tensor, tf.cast(saved[0]!, 'float32'), attrs as Record<string, never>),
    }),
  })),
  ...Object.entries(ofOutput).map(([kernelName, slope]) => ({
    kernelName,
    outputsToSave: [true],
    gradFunc: (dy: Tensor | Tensor[], saved: Tensor[], attrs: object) => ({
      [nameOf(kernelName)]: () => slope(dy as Tensor, saved[0]!, attrs as Record<string, never>),
    }),
  })),
  ...flat.map((kernelName) => ({ kernelName, gradFunc: (dy: Tensor | Tensor[]) => ({ x: () => tf.zerosLike(dy as Tensor) }) })),
  ...[tf.Cast, tf.Identity].map((kernelName) => ({
    kernelName,
    gradFunc: (dy: Tensor | Tensor[]) => ({ x: () => tf.cast(dy as Tensor, 'float32') }),
  })),
];
