import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { adapt, lora, magnitude, mergeAdapter, nf4, prune, quantize, rtn, unmergeAdapter, type Model } from '../src/index.ts';
import { onTiny, train } from '../../testing/src/contract-model.ts';

const zerosOf = async (model: Model): Promise<boolean[][]> => {
  const found: boolean[][] = [];
  for (const { weight } of model.sites('all-linear')) {
    const dense = weight!.dense();
    found.push(Array.from(await dense.data(), (value) => value === 0));
    dense.dispose();
  }
  return found;
};

describe('a pruned model', () => {
  it.each([
    ['nf4', nf4({ blockSize: 32, doubleQuant: false })],
    ['rtn, symmetric', rtn({ bits: 8, groupSize: 16, symmetric: true })],
  ])('keeps its zeros when it is quantized (%s)', (_, method) =>
    onTiny(async (model) => {
      await prune(model, magnitude({ sparsity: 0.5 }));
      const before = await zerosOf(model);
      await quantize(model, method);
      const after = await zerosOf(model);
      expect(after.every((row, i) => row.every((zero, e) => zero || !before[i]![e]))).toBe(true);
    }),
  );

  it.each(['masked', 'n-of-m', 'csr'] as const)('carries adapters that learn, and takes them in without losing a zero (%s)', (store) =>
    onTiny(async (model) => {
      await prune(model, magnitude({ n: 2, m: 4, store }));
      const before = await zerosOf(model);
      for (const { weight } of model.sites('all-linear')) for (const part of Object.values(weight!.parts)) part.trainable = false;
      await adapt(model, lora({ rank: 2, alpha: 4 }), { at: 'all-linear' });
      const tensors = memory().numTensors;
      const { losses } = await train(model, { steps: 12, rate: 0.02 });
      expect(memory().numTensors).toBe(tensors);
      expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.1);
      const report = await mergeAdapter(model, undefined, { into: 'requantize' });
      expect(report.sites.every(({ zerosLost }) => zerosLost === 0)).toBe(true);
      const after = await zerosOf(model);
      expect(after.every((row, i) => row.every((zero, e) => zero || !before[i]![e]))).toBe(true);
      await unmergeAdapter(model);
    }),
  );
});
