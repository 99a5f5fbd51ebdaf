import { commitUpdateOp, dispose, memory, runOp, sumSquares, sumSquaresOp, tensor, tidy, type Tensor } from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { kernelDistance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(41);
const sizes = [1, 7, 64, 65, 1000, 300_001];

describe.each(Object.entries(wasmBuilds))('What ends a step (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each(sizes)('commits %i entries with the bits of its reference', (size) => {
    expect(getKernel(commitUpdateOp.kernelName, getBackend())).toBeDefined();
    for (const factors of [
      { keep: 1, scale: 1, overwrite: false },
      { keep: 0.999, scale: -3e-4, overwrite: false },
    ]) {
      const inputs = { old: random([size]), update: random([size]), ok: tensor([1]) };
      expect(kernelDistance(commitUpdateOp, inputs, factors, runOp)).toBe(0);
    }
  });

  it('keeps the very memory of a value whose step is refused, whatever the update holds', () => {
    const before = memory().numDataBuffers;
    const inputs = { old: tensor([1, -0, Infinity]), update: tensor([NaN, 1, 1]), ok: tensor([0]) };
    const [next] = runOp(commitUpdateOp, inputs, { keep: 0.5, scale: 1, overwrite: false }) as [Tensor];
    expect(next.dataId).toBe(inputs.old.dataId);
    dispose(inputs);
    expect([...next.dataSync()]).toEqual([1, -0, Infinity]);
    next.dispose();
    expect(memory().numDataBuffers).toBe(before);
  });

  it.each([0, ...sizes])('sums the squares of %i entries, alone and among others', (size) => {
    expect(getKernel(sumSquaresOp.kernelName, getBackend())).toBeDefined();
    const before = memory().numTensors;
    tidy(() => {
      const tensors = [random([size]), random([3, 5]), random([size, 2], 8)];
      const exact = (some: readonly Tensor[]): number =>
        some.reduce((sum, x) => [...x.dataSync()].reduce((own, value) => own + value * value, sum), 0);
      for (const some of [tensors.slice(0, 1), tensors]) {
        const got = sumSquares(some).dataSync()[0]!;
        // Blocks of f32 under sums in f64.
        expect(Math.abs(got - exact(some))).toBeLessThanOrEqual(3e-7 * exact(some));
      }
    });
    expect(memory().numTensors).toBe(before);
  });

  it('sums over nothing to 0, and shows what is not finite', () => {
    tidy(() => {
      expect(sumSquares([]).dataSync()[0]).toBe(0);
      expect(sumSquares([random([70]), tensor([1, NaN])]).dataSync()[0]).toBeNaN();
      expect(sumSquares([tensor([-Infinity, 1])]).dataSync()[0]).toBe(Infinity);
    });
  });
});
