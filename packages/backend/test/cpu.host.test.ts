import { init } from '@niwaki/backend';
import { matMul, memory, tensor, tensor1d, type Tensor2D } from '@niwaki/tensor';
import { setBackend, unsortedSegmentSum } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';

beforeAll(async () => {
  await init({ device: 'cpu' });
  await setBackend('cpu');
});

/** The product by its definition, in double. */
function product(a: number[][], b: number[][]): number[] {
  return a.flatMap((row) => b[0]!.map((_, j) => row.reduce((sum, v, k) => sum + v * b[k]![j]!, 0)));
}

const transposed = (m: number[][]): number[][] => m[0]!.map((_, j) => m.map((row) => row[j]!));
const matrix = (rows: number, columns: number, seed: number): number[][] =>
  Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => Math.sin(seed + i * 12.9898 + j * 78.233)));

describe('the product of the cpu device', () => {
  test.each([
    [1, 7, 1],
    [5, 4, 3],
    [7, 65, 9],
    [64, 33, 17],
  ])('%i x %i x %i equals its definition in all four transpositions', async (m, k, n) => {
    const [a, b] = [matrix(m, k, 1), matrix(k, n, 2)];
    const expected = product(a, b);
    for (const [transposeA, transposeB] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ] as const) {
      const x = tensor(transposeA ? transposed(a) : a);
      const y = tensor(transposeB ? transposed(b) : b);
      const before = memory().numTensors;
      const z = matMul(x, y, transposeA, transposeB);
      expect(memory().numTensors).toBe(before + 1);
      expect(z.shape).toEqual([m, n]);
      // Sums of up to 65 terms below 1, each rounded to f32 at most once a term.
      (await z.data()).forEach((v, i) => expect(v).toBeCloseTo(expected[i]!, 4));
      for (const t of [x, y, z]) t.dispose();
    }
  });

  test("broadcasts leading sides numpy's way", async () => {
    const a = tensor([1, 2, 3, 4, 5, 6], [3, 1, 1, 2]);
    const b = tensor([1, 10, 100, 1000], [2, 2, 1]);
    const z = matMul(a, b);
    expect(z.shape).toEqual([3, 2, 1, 1]);
    expect([...(await z.data())]).toEqual([21, 2100, 43, 4300, 65, 6500]);
    for (const t of [a, b, z]) t.dispose();
  });
});

test('a segment sum adds the rows of equal ids and drops ids outside', async () => {
  const ids = tensor1d([1, 3, 1, -1, 5], 'int32');
  const x = tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [5, 2]) as Tensor2D;
  const before = memory().numTensors;
  const sums = unsortedSegmentSum(x, ids, 5);
  expect(memory().numTensors).toBe(before + 1);
  expect([...(await sums.data())]).toEqual([0, 0, 6, 8, 0, 0, 3, 4, 0, 0]);
  for (const t of [ids, x, sums]) t.dispose();
});
