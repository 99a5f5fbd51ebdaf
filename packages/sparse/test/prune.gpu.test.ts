import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { forward, initializeModel, tokenBatch, type Model } from '@niwaki/nn';
import { disposeBatch } from '@niwaki/engine';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { prune, wanda, type PruneMethodOptions } from '../src/index.ts';

const missing = await gpuMissing();

const config = {
  model_type: 'llama',
  vocab_size: 40,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 32,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  rope_theta: 10000,
  tie_word_embeddings: false,
  initializer_range: 0.2,
};
const sequences = Array.from({ length: 2 }, (_, b) => Array.from({ length: 16 }, (__, t) => (t * (b + 1) + (t % 3) * b) % 40));

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
