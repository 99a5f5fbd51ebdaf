import { init } from '@niwaki/backend';
import { expandGroupsOp, packBits, pickGroupsOp, wordsOf } from '@niwaki/tensor';
import { beforeAll, describe, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { expectParity, floats } from './parity.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('stored entries of groups on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each([
    [2, 4, 37],
    [1, 4, 64],
    [3, 8, 1],
    [5, 16, 21],
    [7, 32, 65],
  ])('%i of %i, %i groups, go to their places and come back bit for bit', async (n, m, groups) => {
    const apart = Math.floor(m / n);
    const places = Array.from({ length: groups * n }, (_, i) => (i % n) * apart + ((i * 7) % apart));
    const values = wordsOf(packBits(places, { bits: Math.log2(m) }));
    const words = { shape: [values.length], values };
    await expectParity(expandGroupsOp as never, { words, values: floats([groups * n]) }, { n, m, groups }, 0);
    await expectParity(pickGroupsOp as never, { words, dense: floats([groups * m]) }, { n, m, groups }, 0);
  });
});
