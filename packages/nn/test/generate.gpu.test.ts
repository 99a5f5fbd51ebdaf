import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { expect, test, vi } from 'vitest';
import { memory, ropeOp } from '@niwaki/tensor';
import { generate } from '@niwaki/nn';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

// The first test compiles and self-tests every kernel, which a software adapter does slowly.
vi.setConfig({ testTimeout: 180_000 });

test.skipIf(await gpuMissing())('a cache that grows in place gives the tokens that no cache gives', async () => {
  const model = await tinyLlama();
  const before = memory();
  const prompt = Array.from({ length: 60 }, (_, i) => (7 * i) % 32);
  const idsOf = async (cache: boolean): Promise<number[]> => {
    const ids: number[] = [];
    for await (const { id } of generate(model, prompt, { maxNewTokens: 12, stopIds: [], cache })) ids.push(id);
    return ids;
  };
  const asked = vi.spyOn(getKernel(ropeOp.kernelName, getBackend())!, 'kernelFunc');
  const cached = await idsOf(true);
  // Two layers: the prompt, one pass that is recorded, and one more as 64 rows are full; the others are replays.
  expect(asked).toHaveBeenCalledTimes(2 * 3);
  asked.mockRestore();
  expect(cached).toEqual(await idsOf(false));
  expect(new Set(cached).size).toBeGreaterThan(1);
  expect(memory().numTensors).toBe(before.numTensors);
  expect(memory().numDataBuffers).toBe(before.numDataBuffers);
  model.dispose();
});
