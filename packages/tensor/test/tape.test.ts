import { expect, it } from 'vitest';
import { engine, grads } from '@tensorflow/tfjs-core';
import {
  add,
  concat,
  exp,
  gradientsOf,
  matMul,
  memory,
  mul,
  recordTape,
  reshape,
  sigmoid,
  slice,
  sum,
  tensor1d,
  tensor2d,
  tidy,
  withGradient,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';

const a = (): Tensor2D => tensor2d([0.1, -0.4, 0.7, 0.2, 0.5, -0.3], [2, 3]);
const b = (): Tensor2D => tensor2d([0.3, 0.9, -0.2, 0.4, -0.6, 0.8], [3, 2]);

const net = (x: Tensor, w: Tensor): Tensor => sum(mul(sigmoid(matMul(x, w)), exp(matMul(x, w))));

it('gives what the gradients of tfjs give', () =>
  tidy(() => {
    const [x, w] = [a(), b()];
    const expected = grads((...[p, q]) => net(p!, q!))([x, w]);
    const { value, gradients } = gradientsOf(
      () => net(x, w),
      [x, w],
      (y) => [{ of: y, value: tidy(() => add(mul(y, 0), 1)) }],
    );
    expect(value.dataSync()).toEqual(net(x, w).dataSync());
    gradients.forEach((gradient, i) => expect(gradient!.dataSync()).toEqual(expected[i]!.dataSync()));
  }));

it('sums the cotangents of several outputs, one of which feeds another', () =>
  tidy(() => {
    const [x, w] = [a(), b()];
    const { gradients } = gradientsOf(
      () => {
        const y = matMul(x, w);
        return { y, z: mul(y, y) };
      },
      [x, w],
      ({ y, z }) => [
        { of: y, value: tensor2d([1, 2, 3, 4], [2, 2]) },
        { of: z, value: tensor2d([5, 6, 7, 8], [2, 2]) },
      ],
    );
    const y = matMul(x, w);
    const dy = add(tensor2d([1, 2, 3, 4], [2, 2]), mul(mul(y, 2), tensor2d([5, 6, 7, 8], [2, 2]))) as Tensor2D;
    const close = (given: Tensor, expected: Tensor): void =>
      given.dataSync().forEach((value, i) => expect(value).toBeCloseTo(expected.dataSync()[i]!, 5));
    close(gradients[0]!, matMul(dy, w, false, true));
    close(gradients[1]!, matMul(x, dy, true, false));
  }));

it('leaves what an x does not reach undefined, and hands a cotangent on as a tensor of its own', () => {
  const [x, w] = [a(), b()];
  const ones = tensor2d([1, 1, 1, 1, 1, 1], [2, 3]);
  const { value, gradients } = gradientsOf(
    () => ({ x }),
    [x, w],
    () => [{ of: x, value: ones }],
  );
  expect(value.x).toBe(x);
  expect(gradients[1]).toBeUndefined();
  gradients[0]!.dispose();
  expect(ones.isDisposed).toBe(false);
  for (const tensor of [x, w, ones]) tensor.dispose();
});

it('survives an op that hands its gradient through to both inputs', () => {
  const before = memory().numTensors;
  tidy(() => {
    const [x, y] = [a(), a()];
    const plus = (p: Tensor, q: Tensor): Tensor =>
      withGradient(
        [p, q],
        () => add(p, q),
        (dy) => [dy, dy],
      );
    const { gradients } = gradientsOf(
      () => plus(plus(x, y), mul(x, 3)),
      [x, y],
      (z) => [{ of: z, value: a() }],
    );
    gradients[0]!.dataSync().forEach((g, i) => expect(g).toBeCloseTo(4 * a().dataSync()[i]!, 5));
    gradients[1]!.dataSync().forEach((g, i) => expect(g).toBeCloseTo(a().dataSync()[i]!, 5));
  });
  expect(memory().numTensors).toBe(before);
});

it('saves nothing for sums of equal shapes and for reshapes', () =>
  tidy(() => {
    const [x, y] = [a(), a()];
    const { numTensors } = memory();
    const tape = recordTape(() => reshape(add(reshape(x, [3, 2]), reshape(y, [3, 2])), [6]));
    expect(memory().numTensors).toBe(numTensors + 1);
    const dy = tensor1d([1, 2, 3, 4, 5, 6]);
    const gradients = tape.pull([x, y], [{ of: tape.value, value: dy }]);
    for (const gradient of gradients) {
      expect(gradient!.shape).toEqual([2, 3]);
      expect([...gradient!.dataSync()]).toEqual([1, 2, 3, 4, 5, 6]);
    }
  }));

it('sums the gradient of a side that is spread over the other', () =>
  tidy(() => {
    const row = tensor1d([0.5, 1, 2]);
    const { gradients } = gradientsOf(
      () => add(a(), row),
      [row],
      (y) => [{ of: y, value: a() }],
    );
    const expected = [0.1 + 0.2, -0.4 + 0.5, 0.7 - 0.3];
    gradients[0]!.dataSync().forEach((value, i) => expect(value).toBeCloseTo(expected[i]!, 6));
  }));

it('keeps nothing after pull, after dispose, and after a forward or a gradient that throws', () => {
  const [x, w] = [a(), b()];
  const dy = tensor2d([1, 1, 1, 1], [2, 2]);
  const before = memory().numTensors;
  const forward = (): Tensor => mul(sigmoid(matMul(x, w)), matMul(x, w));
  const pulled = recordTape(forward);
  const gradients = pulled.pull([x, w], [{ of: pulled.value, value: dy }]);
  [pulled.value, ...gradients].forEach((tensor) => tensor!.dispose());
  expect(memory().numTensors).toBe(before);

  const dropped = recordTape(forward);
  expect(memory().numTensors).toBeGreaterThan(before + 1);
  dropped.dispose();
  dropped.value.dispose();
  expect(memory().numTensors).toBe(before);

  const failing = (): Tensor => {
    forward();
    throw new Error('stop');
  };
  expect(() => recordTape(failing)).toThrow('stop');
  expect(memory().numTensors).toBe(before);

  const noGradient = (p: Tensor): Tensor =>
    withGradient(
      [p],
      () => exp(p),
      () => {
        throw new Error('no derivative');
      },
    );
  expect(() =>
    tidy(() =>
      gradientsOf(
        () => forward() && noGradient(matMul(x, w)),
        [x],
        (y) => [{ of: y, value: dy }],
      ),
    ),
  ).toThrow('no derivative');
  expect(memory().numTensors).toBe(before);
  expect(engine().state.gradientDepth).toBe(0);
  [x, w, dy].forEach((tensor) => tensor.dispose());
});

it('records inside a gradient without disturbing the record around it', () =>
  tidy(() => {
    const x = a();
    // An op whose backward records and pulls again: what recomputation inside a gradient does.
    const recomputed = (p: Tensor): Tensor =>
      withGradient(
        [p],
        () => mul(p, p),
        (dy) =>
          gradientsOf(
            () => mul(p, p),
            [p],
            (y) => [{ of: y, value: dy }],
          ).gradients as Tensor[],
      );
    const [gradient] = grads((p: Tensor) => sum(mul(recomputed(p), p)))([x]);
    gradient!.dataSync().forEach((g, i) => expect(g).toBeCloseTo(3 * x.dataSync()[i]! ** 2, 5));
  }));

it('refuses a cotangent of another shape', () =>
  tidy(() => {
    const x = a();
    const y = recordTape(() => concat([x, x]));
    expect(() => y.pull([x], [{ of: y.value, value: slice(x, [0, 0], [1, 3]) }])).toThrow(/cotangent must be float32 \[4,3\]/);
  }));
