import { expect, it } from 'vitest';
import { createDraw, distinctNumbers, noise } from '../src/index.ts';

it('draws distinct numbers in ascending order, the same at the same address', () => {
  const address = createDraw(7, 3).at('x');
  for (const [total, count] of [
    [1, 0],
    [1, 1],
    [10, 3],
    [1000, 1000],
    [1000, 17],
  ] as const) {
    const drawn = distinctNumbers(total, count, address);
    expect(drawn.length).toBe(count);
    expect([...new Set(drawn)].sort((a, b) => a - b)).toEqual([...drawn]);
    expect(drawn.every((value) => value >= 0 && value < total)).toBe(true);
    expect(distinctNumbers(total, count, address)).toEqual(drawn);
  }
  expect(distinctNumbers(1000, 17, createDraw(7, 4).at('x'))).not.toEqual(distinctNumbers(1000, 17, address));
  expect(() => distinctNumbers(3, 4, address)).toThrow(/4 of 3/);
});

it('draws those with the least noise, of equal ones the first', () => {
  const address = createDraw(7, 3).at('x');
  const given = noise([100_000], address, 'uniform');
  const keys = given.dataSync();
  given.dispose();
  const order = Array.from(keys.keys()).sort((a, b) => keys[a]! - keys[b]! || a - b);
  expect([...distinctNumbers(100_000, 900, address)]).toEqual(order.slice(0, 900).sort((a, b) => a - b));
});
