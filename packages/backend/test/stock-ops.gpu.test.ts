import { init } from '@niwaki/backend';
import * as tf from '@niwaki/tensor';
import type { Tensor, Tensor1D, Tensor2D } from '@niwaki/tensor';
import { cumprod, reverse, tensor } from '@tensorflow/tfjs-core';
import { describe, expect, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { floats } from './parity.ts';

const missing = await gpuMissing();

/** Sides of equal rank in a row: a shader that bakes a side into its text, but not into the name it is cached by, is caught. */
const shapes = [
  [2, 3],
  [3, 5],
  [1, 7],
  [65, 4],
  [4, 65],
] as const;

/** Every op that `@niwaki/tensor` exports, on an x in [-1, 1]. */
const ops: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  abs: tf.abs,
  add: (x) => tf.add(x, tf.slice(x, [0, 0], [1, -1])),
  addN: (x) => tf.addN([x, x, x]),
  argMax: (x) => tf.argMax(x, 1),
  cast: (x) => tf.cast(tf.mul(x, 9), 'int32'),
  clipByValue: (x) => tf.clipByValue(x, -0.5, 0.25),
  'concat, last axis': (x) => tf.concat([x, tf.neg(x)], 1),
  'concat, first axis': (x) => tf.concat([x, x], 0),
  cos: tf.cos,
  'cumsum, last axis': (x) => tf.cumsum(x, 1),
  'cumsum, first axis, exclusive': (x) => tf.cumsum(x, 0, true),
  'cumsum, reversed': (x) => tf.cumsum(x, 1, false, true),
  'cumsum, exclusive and reversed': (x) => tf.cumsum(x, 0, true, true),
  'cumprod, exclusive and reversed': (x) => cumprod(x, 1, true, true),
  div: (x) => tf.div(x, tf.add(tf.abs(x), 1)),
  equal: (x) => tf.equal(x, tf.max(x, 1, true)),
  erf: tf.erf,
  exp: tf.exp,
  'fill, ones, zeros': (x) => tf.add(tf.fill(x.shape, 0.5), tf.add(tf.onesLike(x), tf.zerosLike(x))),
  'gather, first axis': (x) => tf.gather(x, tf.tensor1d([0, x.shape[0]! - 1, 0], 'int32')),
  'gather, last axis': (x) => tf.gather(x, tf.tensor1d([x.shape[1]! - 1, 0], 'int32'), 1),
  'greater, less and logic': (x) => tf.logicalOr(tf.logicalAnd(tf.greater(x, 0), tf.less(x, 0.5)), tf.logicalNot(tf.lessEqual(x, 0.75))),
  isFinite: tf.isFinite,
  log: (x) => tf.log(tf.add(tf.abs(x), 0.1)),
  matMul: (x) => tf.matMul(x, x, false, true),
  'matMul, transposed': (x) => tf.matMul(x, x, true, false),
  max: (x) => tf.max(x, 1),
  maximum: (x) => tf.maximum(x, tf.neg(x)),
  'mean, each axis': (x) => tf.add(tf.mean(x, 0, true), tf.mean(x, 1, true)),
  min: (x) => tf.min(x, 0),
  minimum: (x) => tf.minimum(x, 0.1),
  mul: (x) => tf.mul(x, tf.slice(x, [0, 0], [-1, 1])),
  notEqual: (x) => tf.notEqual(x, tf.abs(x)),
  oneHot: (x) => tf.oneHot(tf.argMax(x, 1) as Tensor1D, x.shape[1]! + 1),
  pad: (x) => tf.pad(x as Tensor2D, [[1, 0], [2, 1]]), // prettier-ignore
  pow: (x) => tf.pow(tf.add(tf.abs(x), 0.1), x),
  prod: (x) => tf.prod(x, 1),
  range: (x) => tf.range(0, x.size, 1, 'int32'),
  reciprocal: (x) => tf.reciprocal(tf.add(tf.abs(x), 1)),
  relu: tf.relu,
  reshape: (x) => tf.reshape(x, [x.shape[1]!, x.shape[0]!]),
  reverse: (x) => reverse(x, 1),
  'rsqrt and sqrt': (x) => tf.add(tf.rsqrt(tf.add(tf.abs(x), 1)), tf.sqrt(tf.abs(x))),
  sigmoid: tf.sigmoid,
  sign: tf.sign,
  sin: tf.sin,
  'slice from the end': (x) => tf.slice(x, [0, x.shape[1]! - 2], [-1, 2]),
  softmax: (x) => tf.softmax(x),
  split: (x) => tf.split(x, [1, x.shape[1]! - 1], 1)[1]!,
  square: tf.square,
  stack: (x) => tf.stack([x, tf.neg(x)], 1),
  sub: (x) => tf.sub(1, x),
  'sum, each axis and all': (x) => tf.add(tf.add(tf.sum(x, 0, true), tf.sum(x, 1, true)), tf.sum(x)),
  tanh: tf.tanh,
  tile: (x) => tf.tile(x, [2, 3]),
  'topk values': (x) => tf.topk(x, 2).values,
  'topk indices': (x) => tf.topk(x, 2).indices,
  'transpose of rank 2': (x) => tf.transpose(x),
  'transpose of rank 3': (x) => tf.transpose(tf.stack([x, x], 2), [2, 0, 1]),
  'transpose of rank 4': (x) => tf.transpose(tf.reshape(tf.stack([x, x], 2), [x.shape[0]!, x.shape[1]!, 1, 2]), [0, 2, 1, 3]),
  unstack: (x) => tf.unstack(x, 1)[1]!,
  where: (x) => tf.where(tf.greater(x, 0), x, tf.mul(x, 10)),
};

describe.skipIf(missing)('tfjs ops on WebGPU equal the cpu device, whatever shape came before', () => {
  test.each(Object.entries(ops))('%s', async (_, op) => {
    const run = async (): Promise<{ shape: readonly number[]; values: Float32Array }[]> => {
      const results: { shape: readonly number[]; values: Float32Array }[] = [];
      for (const shape of shapes) {
        const x = tensor(floats(shape).values, [...shape]);
        const y = tf.tidy(() => op(x));
        results.push({ shape: y.shape, values: Float32Array.from(await y.data()) });
        x.dispose();
        y.dispose();
      }
      return results;
    };
    await init({ device: 'cpu' });
    const expected = await run();
    await init({ device: 'webgpu', software: true });
    const before = tf.memory().numTensors;
    const given = await run();
    expect(tf.memory().numTensors).toBe(before);
    for (const [i, { shape, values }] of given.entries()) {
      expect(shape).toEqual(expected[i]!.shape);
      // WGSL promises a handful of units in the last place for exp, log and division, 2^-11 for sin and cos.
      values.forEach((v, e) => expect(Math.abs(v - expected[i]!.values[e]!)).toBeLessThanOrEqual(5e-4 * Math.max(1, Math.abs(v))));
    }
  });
});
