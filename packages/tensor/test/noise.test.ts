import { describe, expect, it } from 'vitest';
import { createDraw, fillNoise, memory, nameId, noise, NumericError, type Distribution } from '../src/index.ts';

const all: Distribution[] = ['gaussian', 'rademacher', 'binomial64', 'irwinhall12', 'uniform', 'mask'];

describe.each(all)('%s noise', (distribution) => {
  it.each([1, 3, 5, 127, 129, 4097])('of length %i has the same bits on every device', (length) => {
    const before = memory().numTensors;
    const drawn = noise([length], createDraw(2n ** 40n + 5n, 3).at('w#rounding', 2), distribution, { keep: 0.7 });
    const expected = new Float32Array(length);
    fillNoise(expected, { seedLow: 5, seedHigh: 256, step: 3, id: nameId('w#rounding'), sample: 2, distribution, length, keep: 0.7 });
    expect([...drawn.dataSync()]).toEqual([...expected]);
    drawn.dispose();
    expect(memory().numTensors).toBe(before);
  });
});

describe('noise', () => {
  it('follows the logical index, whatever the shape', () => {
    const address = createDraw(1, 0).at('w');
    const [flat, matrix] = [noise([6], address, 'gaussian'), noise([2, 3], address, 'gaussian')];
    expect(matrix.shape).toEqual([2, 3]);
    expect([...matrix.dataSync()]).toEqual([...flat.dataSync()]);
    flat.dispose();
    matrix.dispose();
  });

  it('refuses probabilities and samples out of range', () => {
    const address = createDraw(1, 0).at('w');
    expect(() => noise([1], address, 'mask', { keep: 1.5 })).toThrow(NumericError);
    expect(() => noise([1], { ...address, sample: 2 ** 24 }, 'mask')).toThrow(NumericError);
    expect(() => noise([1], { ...address, sample: -1 }, 'mask')).toThrow(NumericError);
  });
});
