import { describe, expect, it } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { memory } from '@niwaki/tensor';
import { init, qGalore } from '../src/index.ts';
import { onModel } from '../../lowrank/test/on-model.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('int8 weights on WebGPU', () => {
  it('train as on the cpu device', async () => {
    const losses: number[][] = [];
    for (const device of ['cpu', 'webgpu'] as const) {
      await init({ device, ...(device === 'webgpu' && { software: true }) });
      const optimizer = qGalore({ learningRate: 1, rank: 4, every: 2, basisGroupSize: 32, state: { minSize: 64, blockSize: 64 } });
      const before = memory().numTensors;
      const { advance, end } = await onModel(optimizer, { rounding: 'stochastic', commit: 'eager', rate: 0.02 });
      losses.push(await advance(3));
      end();
      expect(memory().numTensors).toBe(before);
    }
    expect(losses[0]!.at(-1)!).toBeLessThan(losses[0]![0]!);
    // The same draws; an entry that falls on the other side of a boundary is a step of its group away.
    losses[1]!.forEach((loss, i) => expect(Math.abs(loss / losses[0]![i]! - 1)).toBeLessThan(5e-3));
  });
});
