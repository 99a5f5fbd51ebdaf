import {
  abs,
  add,
  addN,
  cast,
  clipByValue,
  concat,
  cos,
  cumsum,
  div,
  exp,
  expandDims,
  gather,
  greater,
  log,
  matMul,
  max,
  maximum,
  mean,
  memory,
  min,
  minimum,
  mul,
  neg,
  pad,
  pow,
  prod,
  reciprocal,
  relu,
  reshape,
  rsqrt,
  sigmoid,
  sign,
  sin,
  slice,
  softmax,
  split,
  sqrt,
  square,
  squeeze,
  stack,
  sub,
  sum,
  tanh,
  tensor,
  tensor1d,
  tidy,
  tile,
  transpose,
  unstack,
  where,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { avgPool, batchNorm, conv2d, conv2dTranspose, depthwiseConv2d, grads, maxPool, type Tensor4D } from '@tensorflow/tfjs-core';
import { expect, test } from 'vitest';

const numbers = (n: number, seed: number): number[] => Array.from({ length: n }, (_, i) => Math.sin(seed + i * 1.7) * 1.3 + 0.05);
const positive = (n: number, seed: number): number[] => numbers(n, seed).map((v) => Math.abs(v) + 0.4);

type Input = () => Tensor;
/** Name, function of f32 tensors, and what makes them. Each result is weighted so that no symmetry hides an error. */
type Case = readonly [name: string, of: (...x: Tensor[]) => Tensor, ...inputs: Input[]];
const [a, b] = [numbers(6, 1), numbers(6, 2)];
const p = positive(6, 3);
const m =
  (values: number[], shape: number[] = [2, 3]): Input =>
  () =>
    tensor(values, shape);

const image = m(numbers(24, 5), [1, 3, 4, 2]);

const cases: readonly Case[] = [
  ['add with a row', (x, y) => add(x, y), m(a), m(b.slice(0, 3), [3])],
  ['sub with a column', (x, y) => sub(x, y), m(a), m(b.slice(0, 2), [2, 1])],
  ['mul with a scalar', (x, y) => mul(x, y), m(a), m([0.7], [])],
  ['div', (x, y) => div(x, y), m(a), m(p)],
  ['maximum', (x, y) => maximum(x, y), m(a), m(b)],
  ['minimum', (x, y) => minimum(x, y), m(a), m(b)],
  ['pow in both', (x, y) => pow(x, y), m(p), m(b)],
  ['abs, neg, sign', (x) => add(abs(x), add(neg(x), sign(x))), m(a)],
  ['exp, sin, cos, tanh, sigmoid', (x) => add(exp(x), add(sin(x), add(cos(x), add(tanh(x), sigmoid(x))))), m(a)],
  ['log, sqrt, rsqrt, reciprocal, square', (x) => add(log(x), add(sqrt(x), add(rsqrt(x), add(reciprocal(x), square(x))))), m(p)],
  ['relu and clip', (x) => add(relu(x), clipByValue(x, -0.5, 0.5)), m(a)],
  ['softmax', (x) => softmax(x), m(a)],
  ['where over a comparison of the variable', (x, y) => where(greater(x, 0), mul(x, y), y), m(a), m(b)],
  ['a cast comparison', (x) => mul(cast(greater(x, 0), 'float32'), x), m(a)],
  ['reshape, transpose, expandDims, squeeze', (x) => squeeze(expandDims(transpose(reshape(x, [3, 2])), 0)), m(a)],
  ['transpose of rank 3', (x) => transpose(x, [2, 0, 1]), m(numbers(12, 4), [2, 3, 2])],
  ['concat', (x, y) => concat([x, y], 1), m(a), m(b)],
  ['stack of three', (x, y) => stack([x, y, x], 1), m(a), m(b)],
  ['split', (x) => sub(split(x, [1, 1], 0)[0]!, split(x, 2, 0)[1]!), m(a)],
  ['unstack', (x) => mul(unstack(x, 1)[0]!, unstack(x, 1)[2]!), m(a)],
  ['addN', (x, y) => addN([x, y, x]), m(a), m(b)],
  ['pad', (x) => pad(x as Tensor2D, [[1, 0], [2, 1]]), m(a)], // prettier-ignore
  ['slice to the end', (x) => slice(x, [0, 1], [1, -1]), m(a)],
  ['tile', (x) => tile(x, [2, 3]), m(a)],
  ['gather along the first axis, an index twice', (x) => gather(x, tensor1d([1, 0, 1], 'int32')), m(a)],
  ['gather along the last axis', (x) => gather(x, tensor1d([2, 0], 'int32'), 1), m(a)],
  ['sum over rows', (x) => sum(x, 0), m(a)],
  ['mean over columns, kept', (x) => mean(x, -1, true), m(a)],
  ['sum and mean of all', (x) => add(sum(x), mean(x)), m(a)],
  ['max and min', (x) => add(max(x, 1), min(x, 1)), m(a)],
  ['prod over columns', (x) => prod(x, 1), m(a)],
  ['prod over rows', (x) => prod(x, 0), m(a)],
  ['cumsum along the first axis', (x) => cumsum(x, 0), m(a)],
  ['cumsum, exclusive and reversed', (x) => cumsum(x, 1, true, true), m(a)],
  ['matMul', (x, y) => matMul(x, y), m(a), m(b, [3, 2])],
  ['matMul, first transposed', (x, y) => matMul(x, y, true, false), m(a, [3, 2]), m(b, [3, 2])],
  ['matMul, second transposed', (x, y) => matMul(x, y, false, true), m(a), m(b)],
  ['matMul, both transposed', (x, y) => matMul(x, y, true, true), m(a, [3, 2]), m(b)],
  ['conv2d', (x, w) => conv2d(x as Tensor4D, w as Tensor4D, 2, 'same'), image, m(numbers(24, 6), [2, 3, 2, 2])],
  ['conv2d, padded', (x, w) => conv2d(x as Tensor4D, w as Tensor4D, 1, 1, 'NHWC', 1, 'floor'), image, m(numbers(18, 6), [3, 3, 2, 1])],
  ['depthwiseConv2d', (x, w) => depthwiseConv2d(x as Tensor4D, w as Tensor4D, 1, 'same'), image, m(numbers(24, 7), [2, 3, 2, 2])],
  ['conv2d, dilated', (x, w) => conv2d(x as Tensor4D, w as Tensor4D, 1, 'same', 'NHWC', [1, 2]), image, m(numbers(24, 6), [2, 3, 2, 2])],
  [
    'conv2d, dilated both ways, nothing padded',
    (x, w) => conv2d(x as Tensor4D, w as Tensor4D, 1, 'valid', 'NHWC', 2),
    image,
    m(numbers(16, 6), [2, 2, 2, 2]),
  ],
  [
    'depthwiseConv2d, dilated',
    (x, w) => depthwiseConv2d(x as Tensor4D, w as Tensor4D, 1, 'same', 'NHWC', [2, 1]),
    image,
    m(numbers(24, 7), [2, 3, 2, 2]),
  ],
  [
    'conv2dTranspose',
    (x, w) => conv2dTranspose(x as Tensor4D, w as Tensor4D, [1, 6, 8, 1], 2, 'same'),
    image,
    m(numbers(18, 6), [3, 3, 1, 2]),
  ],
  ['maxPool', (x) => maxPool(x as Tensor4D, 2, 1, 'same'), image],
  ['maxPool of negative numbers', (x) => maxPool(sub(x, 3) as Tensor4D, [2, 3], 2, 'valid'), image],
  ['avgPool', (x) => avgPool(x as Tensor4D, [2, 3], 2, 'valid'), image],
  [
    'batchNorm',
    (x, mean, variance, offset, scale) =>
      batchNorm(x as Tensor4D, mean as Tensor1D, variance as Tensor1D, offset as Tensor1D, scale as Tensor1D),
    image,
    ...[a, p, b, numbers(2, 8)].map((values) => m(values.slice(0, 2), [2])),
  ],
  ['matMul of batches against one matrix', (x, y) => matMul(x, y), m(numbers(12, 5), [2, 2, 3]), m(b, [1, 3, 2])],
];

// f32 central differences at this step: curvature and rounding leave about 2e-3 of noise on values around 1.
const step = 1e-2;
const tolerance = 1e-2;

/** Every registered gradient against central differences, on the device that is current. */
export function gradientSuite(): void {
  test.each(cases.map((one) => ({ name: one[0], one })))(
    'the gradient of $name equals central differences',
    async ({ one: [, of, ...makers] }) => {
      const before = memory().numTensors;
      const inputs = makers.map((make) => make());
      const loss = (...x: Tensor[]): Tensor =>
        tidy(() => {
          const y = of(...x);
          return sum(mul(y, tensor(positive(y.size, 9), y.shape)));
        });
      const gradients = grads(loss)(inputs);
      for (const [which, x] of inputs.entries()) {
        const values = Array.from(await x.data());
        const gradient = await gradients[which]!.data();
        expect(gradients[which]!.shape).toEqual(x.shape);
        for (let i = 0; i < values.length; i++) {
          const side: number[] = [];
          for (const delta of [step, -step]) {
            const moved = tensor(
              values.map((v, j) => (j === i ? v + delta : v)),
              x.shape,
            );
            const y = loss(...inputs.map((t, j) => (j === which ? moved : t)));
            side.push((await y.data())[0]!);
            y.dispose();
            moved.dispose();
          }
          expect(Math.abs(gradient[i]! - (side[0]! - side[1]!) / (2 * step))).toBeLessThan(tolerance * (1 + Math.abs(gradient[i]!)));
        }
      }
      for (const t of [...gradients, ...inputs]) t.dispose();
      expect(memory().numTensors).toBe(before);
    },
  );

  test('the gradient of a product passes through a zero', async () => {
    const x = tensor1d([2, 0, 3]);
    const [gradient] = grads((t) => prod(t!))([x]);
    expect([...(await gradient!.data())]).toEqual([0, 6, 0]);
    x.dispose();
    gradient!.dispose();
  });
}
