import { describe, expect, it } from 'vitest';
import { memory, type Tensor } from '@niwaki/tensor';
import { forward } from '@niwaki/nn';
import { hasShared } from '../../testing/src/shared.ts';
import { distanceTo, goldenBatch, goldenIo, goldenModel } from './golden.ts';

// f32 against f32 with sums in another order.
const tolerance = 1e-4;

const models = [
  'llama',
  'llama-linear-rope',
  'llama-dynamic-rope',
  'llama3-rope',
  'llama-yarn-rope',
  'smollm2-tied',
  'mistral-swa',
  'qwen2',
  'qwen3',
];

describe.skipIf(!hasShared)('decoder families against the reference', () => {
  it.each(models)('%s gives the logits and hidden states of the reference', async (name) => {
    const before = memory().numTensors;
    const io = goldenIo(name);
    const model = await goldenModel(name);
    const batch = goldenBatch(io);
    const emitted = new Map<string, Tensor[]>();
    const logits = forward(model, batch, { emitted });
    expect(logits.shape).toEqual(io.logits_shape);
    expect(distanceTo(io.logits, await logits.data(), io)).toBeLessThan(tolerance);
    const hidden = { 'model.embed_tokens': io.hidden0, 'model.layers.0': io.hidden1, 'model.norm': io.hidden_last };
    for (const [path, expected] of Object.entries(hidden)) {
      expect({ path, near: distanceTo(expected, await emitted.get(path)![0]!.data(), io) < tolerance }).toEqual({ path, near: true });
    }
    for (const tensor of [logits, ...Object.values(batch), ...[...emitted.values()].flat()]) tensor.dispose();
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
