import * as t from '@niwaki/tensor';
import type { Tensor } from '@niwaki/tensor';
import { grad, setBackend } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { distance, useBuild } from './wasm-builds.ts';

/** Entries from -3 to 3 in a fixed disorder, none of them near a kink of the ops below. */
const values = (size: number): number[] => Array.from({ length: size }, (_, i) => ((i * 37) % 61) / 10 - 2.97);
const x = (shape: number[] = [3, 5, 7]): Tensor => t.tensor(values(shape.reduce((a, b) => a * b, 1)), shape);
const positive = (): Tensor => t.add(t.abs(x()), 0.5);
const ints = (shape: number[]): Tensor => t.tensor(Int32Array.from(values(shape.reduce((a, b) => a * b, 1)), Math.abs), shape, 'int32');
const flags = (): Tensor => t.greater(x(), 0);

/** Differentiable in their one argument of shape [3, 5, 7]. */
const smooth: Readonly<Record<string, (a: Tensor) => Tensor>> = {
  abs: (a) => t.abs(a),
  add: (a) => t.add(a, x([7])),
  addN: (a) => t.addN([a, x(), a]),
  clipByValue: (a) => t.clipByValue(a, -1, 1),
  concat: (a) => t.concat([a, x([3, 2, 7])], 1),
  cos: (a) => t.cos(a),
  cumsum: (a) => t.cumsum(a, 1),
  'cumsum, exclusive and reversed': (a) => t.cumsum(a, 2, true, true),
  div: (a) => t.div(a, positive()),
  'div, broadcast': (a) => t.div(x([3, 1, 1]), t.add(t.square(a), 1)),
  erf: (a) => t.erf(a),
  exp: (a) => t.exp(a),
  expm1: (a) => t.expm1(a),
  expandDims: (a) => t.expandDims(a, 1),
  gather: (a) => t.gather(a, t.tensor1d([2, 0, 2], 'int32'), 1),
  log: (a) => t.log(t.add(t.square(a), 0.1)),
  'matMul, batched': (a) => t.matMul(a, x([3, 7, 4])),
  'max of an axis': (a) => t.max(a, 1),
  maximum: (a) => t.maximum(a, x([5, 1])),
  'mean of an axis': (a) => t.mean(a, [0, 2]),
  'min of an axis': (a) => t.min(a, 2, true),
  minimum: (a) => t.minimum(a, 0.25),
  mul: (a) => t.mul(a, x([5, 1])),
  neg: (a) => t.neg(a),
  pad: (a) =>
    t.pad(
      a,
      [
        [0, 1],
        [2, 0],
        [1, 1],
      ],
      0.5,
    ),
  pow: (a) => t.pow(t.add(t.abs(a), 0.5), 1.7),
  prod: (a) => t.prod(a, 1),
  reciprocal: (a) => t.reciprocal(t.add(t.square(a), 1)),
  relu: (a) => t.relu(a),
  reshape: (a) => t.reshape(a, [7, 15]),
  rsqrt: (a) => t.rsqrt(t.add(t.square(a), 1)),
  sigmoid: (a) => t.sigmoid(a),
  sin: (a) => t.sin(a),
  slice: (a) => t.slice(a, [1, 2, 3], [2, 3, 2]),
  softmax: (a) => t.softmax(a),
  split: (a) => t.split(a, [1, 4, 2], 2)[1]!,
  sqrt: (a) => t.sqrt(t.add(t.square(a), 1)),
  square: (a) => t.square(a),
  squeeze: (a) => t.squeeze(t.slice(a, [0, 1, 0], [3, 1, 7])),
  stack: (a) => t.stack([a, x()], 2),
  sub: (a) => t.sub(1, a),
  sum: (a) => t.sum(a),
  'sum of an axis': (a) => t.sum(a, 1),
  tanh: (a) => t.tanh(a),
  tile: (a) => t.tile(a, [2, 1, 3]),
  transpose: (a) => t.transpose(a, [2, 0, 1]),
  unstack: (a) => t.unstack(a, 1)[3]!,
  where: (a) => t.where(flags(), a, t.mul(a, 0.5)),
};

const others: Readonly<Record<string, () => Tensor>> = {
  argMax: () => t.argMax(x(), 1),
  'argMax of the last axis': () => t.argMax(x(), -1),
  'cast to int32': () => t.cast(x(), 'int32'),
  'cast to bool': () => t.cast(t.tensor([0, 0.5, -2, 1]), 'bool'),
  'cast of bool': () => t.cast(flags(), 'float32'),
  equal: () => t.equal(ints([4, 3]), ints([3])),
  greater: () => t.greater(x(), x([7])),
  greaterEqual: () => t.greaterEqual(ints([9]), 2),
  less: () => t.less(x(), 0.3),
  lessEqual: () => t.lessEqual(ints([4, 3]), ints([4, 1])),
  notEqual: () => t.notEqual(ints([4, 3]), ints([3])),
  isFinite: () => t.isFinite(t.tensor([1, NaN, Infinity, -Infinity, 0])),
  logicalAnd: () => t.logicalAnd(flags(), t.less(x(), 1)),
  logicalNot: () => t.logicalNot(flags()),
  logicalOr: () => t.logicalOr(flags(), t.less(x(), -1)),
  'oneHot of int32': () => t.oneHot(t.tensor1d([0, 2, 1], 'int32'), 4),
  'oneHot of float32': () => t.oneHot(t.tensor1d([0, 2, 1], 'int32'), 4, 0.5, -1, 'float32'),
  range: () => t.range(3, 11, 2, 'int32'),
  sign: () => t.sign(x()),
  'sum of int32': () => t.sum(ints([4, 5]), 0),
  'max of int32': () => t.max(ints([4, 5]), 1),
  'add of int32': () => t.add(ints([4, 5]), ints([5])),
  'mul of int32': () => t.mul(ints([4, 5]), 3),
  'sub of int32': () => t.sub(ints([4, 5]), ints([4, 1])),
  'gather of int32': () => t.gather(ints([6, 3]), t.tensor1d([5, 5, 0], 'int32')),
  'concat of int32': () => t.concat([ints([2, 3]), ints([4, 3])], 0),
  'tile of bool': () => t.tile(flags(), [1, 2, 1]),
  'where of int32': () => t.where(t.greater(ints([8]), 1), ints([8]), t.zerosLike(ints([8]))),
  scatterND: () => t.scatterND(t.tensor2d([4, 1, 4], [3, 1], 'int32'), x([3, 5]), [6, 5]),
  unsortedSegmentSum: () => t.unsortedSegmentSum(x([4, 5]), t.tensor1d([2, 0, -1, 2], 'int32'), 3),
  topk: () => t.topk(x([4, 9]), 3).values,
  'topk indices': () => t.topk(x([4, 9]), 3).indices,
  'transpose of rank 5': () => t.transpose(x([2, 3, 2, 4, 3]), [4, 1, 3, 0, 2]),
  zeros: () => t.zeros([2, 3]),
  fill: () => t.fill([2, 3], 1.5),
};

/** Other orders of sums and other approximations of exp, log and pow. */
const tolerance = 2e-6;

async function onBoth(compute: () => Tensor): Promise<{ got: Tensor; wanted: Tensor; error: number }> {
  await setBackend('cpu');
  const wanted = t.tidy(compute);
  const values = await wanted.data();
  await useBuild({ threads: 1 });
  const got = t.tidy(compute);
  return { got, wanted, error: distance(await got.data(), values) };
}

describe("Every op that Niwaki builds on gives on wasm what it gives on tfjs's cpu device", () => {
  for (const [name, op] of Object.entries(smooth)) {
    it(`${name}, and its gradient`, async () => {
      for (const compute of [() => op(x()), () => grad((a) => t.sum(t.mul(op(a), t.sin(op(a)))))(x())]) {
        const { got, wanted, error } = await onBoth(compute);
        expect(got.shape).toEqual(wanted.shape);
        expect(error).toBeLessThan(tolerance);
        t.dispose([got, wanted]);
      }
    });
  }

  for (const [name, op] of Object.entries(others)) {
    it(`${name}, which has no gradient`, async () => {
      const { got, wanted, error } = await onBoth(op);
      expect(got.shape).toEqual(wanted.shape);
      expect(got.dtype).toEqual(wanted.dtype);
      expect(error).toBeLessThan(tolerance);
      t.dispose([got, wanted]);
    });
  }
});
