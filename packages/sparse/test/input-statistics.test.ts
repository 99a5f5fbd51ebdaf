import { describe, expect, it } from 'vitest';
import { memory, tensor2d, tidy, type Tensor1D } from '@niwaki/tensor';
import type { Collector, CollectorState } from '@niwaki/engine';
import type { Site } from '@niwaki/nn';
import { inputMoments, inputSquares } from '../src/input-statistics.ts';

type Rows = readonly (readonly number[])[];

/** What a collector finds in batches of rows [rows, in], each with rows of padding behind it. */
async function found<R extends object>(collector: Collector<R>, batches: readonly Rows[], padding = 0): Promise<Record<string, number[]>> {
  const before = memory().numTensors;
  const width = batches[0]![0]!.length;
  let state: CollectorState = tidy(() => collector.init({ weight: { shape: [1, width] } } as unknown as Site));
  let count = 0;
  for (const rows of batches) {
    const padded = [...rows, ...Array.from({ length: padding }, () => Array.from({ length: width }, () => 99))];
    const x = tensor2d(padded.map((row) => [...row]));
    const mask = padding === 0 ? undefined : tensor2d(padded.map((_, r) => [r < rows.length ? 1 : 0]));
    const next = tidy(() => collector.update(state, x, { count: rows.length, ...(mask && { mask }) }));
    for (const tensor of Object.values(state)) tensor.dispose();
    state = next;
    count += rows.length;
    x.dispose();
    mask?.dispose();
  }
  const result = await collector.finish(state, count);
  const named = ('dataSync' in result ? { squares: result } : result) as Record<string, Tensor1D>;
  const values = Object.fromEntries(Object.entries(named).map(([name, tensor]) => [name, [...tensor.dataSync()]]));
  collector.release!(result);
  expect(memory().numTensors).toBe(before);
  return values;
}

const tokens = [
  [1, 2, 4, 0.1],
  [1, -2, 2, 0.3],
];
const expectClose = (given: readonly number[] | undefined, expected: readonly number[]): void => {
  expect(given).toHaveLength(expected.length);
  expected.forEach((value, i) => expect(given![i]).toBeCloseTo(value, 5));
};

describe('squared norms of inputs', () => {
  it('are sums over the tokens of a sequence, averaged over sequences, without padding', async () => {
    const one = [2, 8, 20, 0.1];
    expectClose((await found(inputSquares(), [tokens])).squares, one);
    expectClose((await found(inputSquares(), [tokens], 2)).squares, one);
    expectClose((await found(inputMoments(), [tokens], 2)).squares, one);
    expectClose(Array.from((await found(inputSquares(), [tokens])).squares!, Math.sqrt), [1.41421, 2.82843, 4.47214, 0.316228]);
    // The second sequence is the first token alone.
    const mean = [1.5, 6, 18, 0.055];
    expectClose((await found(inputSquares(), [tokens, [tokens[0]!]])).squares, mean);
    expectClose((await found(inputMoments(), [tokens, [tokens[0]!]], 1)).squares, mean);
  });
});

describe('moments of inputs', () => {
  it('hold sums, which twice as long a sequence doubles, and variances, which it does not', async () => {
    const [once, twice] = [await found(inputMoments(), [tokens]), await found(inputMoments(), [[...tokens, ...tokens]])];
    expectClose(once['sums'], [2, 0, 6, 0.4]);
    expectClose(twice['sums'], [4, 0, 12, 0.8]);
    expectClose(once['variances'], [0, 4, 1, 0.01]);
    expectClose(twice['variances'], [0, 4, 1, 0.01]);
  });

  it('take the variance inside each sequence, and weigh it by its tokens', async () => {
    // Variances 1 and 6 over two and three tokens around means of 1 and 12: 4, where that of all five together is 33.04.
    const { variances, sums } = await found(
      inputMoments(),
      [
        [[0], [2]],
        [[9], [12], [15]],
      ],
      1,
    );
    expectClose(variances, [(2 * 1 + 3 * 6) / 5]);
    expectClose(sums, [(2 + 36) / 2]);
  });
});
