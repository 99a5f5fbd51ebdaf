import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { forward, initializeModel, tokenBatch, type Model } from '@niwaki/nn';
import { disposeBatch } from '@niwaki/engine';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { prune, wanda, type PruneMethodOptions } from '../src/index.ts';
import { calibrationConfig, calibrationSequences } from '../../testing/src/calibration-model.ts';

const missing = await gpuMissing();

const config = { ...calibrationConfig, num_hidden_layers: 1 };
const sequences = calibrationSequences(2, 16);

/** Logits of a model pruned so. */
async function logitsOf(options: PruneMethodOptions): Promise<Float32Array> {
  const model: Model = await initializeModel(config, { seed: 1, trainable: false });
  const batch = tokenBatch(sequences, { vocabularySize: 40 });
  const { sparsity } = await prune(model, wanda(options), { calibrate: { batches: [batch] } });
  expect(sparsity).toBe(0.5);
  const logits = forward(model, batch);
  const values = (await logits.data()) as Float32Array;
  logits.dispose();
  disposeBatch(batch);
  model.dispose();
  return values;
}

describe.skipIf(missing)('pruning on WebGPU', () => {
  it('gives the same logits however the zeros are stored', async () => {
    const before = memory().numTensors;
    const masked = await logitsOf({ n: 2, m: 4 });
    for (const store of ['n-of-m', 'csr'] as const) {
      const other = await logitsOf({ n: 2, m: 4, store });
      other.forEach((value, i) => expect(value).toBeCloseTo(masked[i]!, 4));
    }
    expect(memory().numTensors).toBe(before);
  });
});
