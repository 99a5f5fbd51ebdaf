import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { memory } from '@niwaki/tensor';
import { blockwiseBackprop } from '@niwaki/engine';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { differentiate, withBatch } from '../../testing/src/model-gradient.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('what is computed again on WebGPU', () => {
  it('has the bits of what was kept', async () => {
    await init({ device: 'webgpu', software: true });
    const before = memory().numTensors;
    const model = await tinyLlama();
    await withBatch(model, async (batch) => {
      const kept = await differentiate(model, batch, { estimator: blockwiseBackprop({ recompute: 'none' }) });
      for (const recompute of ['selective', 'full'] as const) {
        const estimator = blockwiseBackprop({ recompute, verifyRecompute: true });
        expect(await differentiate(model, batch, { estimator })).toEqual(kept);
      }
    });
    model.dispose();
    expect(memory().numTensors).toBe(before);
  }, 300_000);
});
