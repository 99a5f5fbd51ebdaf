import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { denseHead, headKernelSuite, withHead } from './support/head-suite.ts';

describe('the head on wasm', async () => {
  await init({ device: 'wasm', threads: 1 });
  headKernelSuite();

  it('gives the same bits on one thread and on two', async () => {
    const results: [loss: number, ...gradients: Buffer[]][] = [];
    for (const threads of [1, 2]) {
      await init({ device: 'wasm', threads });
      const { loss, gradients } = await withHead({ rows: 65, make: () => denseHead(4001, 64) }, ({ run }) => run());
      results.push([loss, ...[...gradients.values()].map(({ buffer }) => Buffer.from(buffer))]);
    }
    const [one, two] = results as [(typeof results)[0], (typeof results)[0]];
    expect(two[0]).toBe(one[0]);
    expect(one.length).toBe(3);
    expect(two.slice(1).map((bits, i) => (bits as Buffer).equals(one[i + 1] as Buffer))).toEqual([true, true]);
  });
});
