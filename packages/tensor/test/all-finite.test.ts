import { allFinite, memory, tensor1d, zeros } from '@niwaki/tensor';
import { expect, test } from 'vitest';

test.each([
  ['ordinary numbers', [1, -2, 0, 3e38], 1],
  ['a NaN at the end', [1, 2, NaN], 0],
  ['an infinity', [Infinity, 2, 3], 0],
  ['a negative infinity', [1, -Infinity, 3], 0],
])('of %s', async (_, values, expected) => {
  const x = tensor1d(values);
  const before = memory().numTensors;
  const finite = allFinite(x);
  expect(memory().numTensors).toBe(before + 1);
  expect(finite.shape).toEqual([]);
  expect((await finite.data())[0]).toBe(expected);
  finite.dispose();
  x.dispose();
});

test('integers and an empty tensor are finite', async () => {
  const cases = [tensor1d([1, 2], 'int32'), zeros([0])];
  for (const x of cases) {
    const finite = allFinite(x);
    expect((await finite.data())[0]).toBe(1);
    finite.dispose();
    x.dispose();
  }
});
