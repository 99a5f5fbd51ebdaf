import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { gradientsOf, memory, onesLike, tensor2d, tidy, type Parameter } from '@niwaki/tensor';
import { createCall, onScaledChannels, tensorQuantizer, tokenQuantizer, type ActivationQuantizer } from '../src/index.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { oddSizes, productWithOutliers } from './llm-int8.ts';

const missing = await gpuMissing();

/** What comes out, and the gradients of its sum by x and by what trains. */
async function results(quantizer: ActivationQuantizer, rows: number[][], train: readonly Parameter[] = []): Promise<number[][]> {
  const x = tensor2d(rows);
  const watched = new Map(train.map((parameter) => [parameter, parameter.read()]));
  const { value, gradients } = tidy(() =>
    gradientsOf(
      () => quantizer.apply(x, createCall({ batch: {}, watched })),
      [x, ...watched.values()],
      (of) => [{ of, value: onesLike(of) }],
    ),
  );
  const numbers: number[][] = [];
  for (const tensor of [value, ...gradients]) {
    numbers.push([...(await tensor!.data())]);
    tensor!.dispose();
  }
  x.dispose();
  return numbers;
}

const expectClose = (given: readonly number[], expected: readonly number[]): void => {
  expect(given).toHaveLength(expected.length);
  for (const [i, value] of given.entries()) expect(value).toBeCloseTo(expected[i]!, 5);
};

describe.skipIf(missing)('rounded activations on WebGPU', () => {
  it('are the numbers and the gradients worked by hand', async () => {
    await init({ device: 'webgpu', software: true });
    const before = memory().numTensors;
    const step = tensorQuantizer('m', { scale: 0.25, zero: 4 }, { bits: 3, symmetric: false });
    const [value, dx, ds] = await results(step, [[-1.2, -0.33, 0.14, 0.6, 2]], [step.step]);
    expectClose(value!, [-1, -0.25, 0.25, 0.5, 0.75]);
    expectClose(dx!, [0, 1, 1, 1, 0]);
    expectClose(ds!, [-0.64]);
    const uneven = tokenQuantizer({ bits: 4, symmetric: false });
    expectClose(
      (
        await results(uneven, [
          [-1, -0.2, 0.1, 0.5],
          [0, 0, 0, 0],
        ])
      )[0]!,
      [-1, -0.2, 0.1, 0.5, 0, 0, 0, 0],
    );
    const scaled = onScaledChannels('m', tokenQuantizer({ bits: 3, symmetric: true }), Float32Array.of(1, 0.25, 1));
    const [outliers, through] = await results(scaled, [[3, 12, -1]]);
    expectClose(outliers!, [3, 12, -1]);
    expectClose(through!, [1, 1, 1]);
    const rule = tokenQuantizer({ bits: 8, symmetric: true, outlierThreshold: 6 });
    const [mixed, straight] = await results(rule, [
      [0.5, -1.27, 0.0033, 1, 8],
      [1.1, 2, -6, 0.3, 0.1],
      [5, 1, 0, 0, 0],
    ]);
    const fine = 2 / 127;
    expectClose(mixed!, [0.5, -1.27, 0.0033, 1, 8, 70 * fine, 2, -6, 19 * fine, 0.1, 5, (25 * 5) / 127, 0, 0, 0]);
    expect(straight!.every((value) => value === 1)).toBe(true);
    for (const sizes of oddSizes) {
      const { given, weight, expected: product, free } = await productWithOutliers(...sizes);
      const y = tidy(() => weight.apply(rule.apply(given, createCall({ batch: {} })), createCall({ batch: {} })));
      const apart = [...(await y.data())].map((value, i) => Math.abs(value - product.values[i]!));
      expect(apart.length).toBe(sizes[0] * sizes[2]);
      expect(Math.max(...apart)).toBeLessThan(product.room);
      y.dispose();
      free();
    }
    for (const { parts } of [step, scaled]) for (const part of Object.values(parts)) part.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
