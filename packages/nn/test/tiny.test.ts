import { expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { forward, tokenBatch } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

it('builds the same random model from the same seed, with the parameters its config says', async () => {
  const before = memory().numTensors;
  const [a, b, c] = [await tinyLlama(), await tinyLlama(), await tinyLlama({}, { seed: 2 })];
  const batch = tokenBatch([[1, 2, 3, 4]], { vocabularySize: 32 });
  const outputs = [a, b, c].map((model) => forward(model, batch));
  const [first, second, other] = (await Promise.all(outputs.map((output) => output.data()))) as [Float32Array, Float32Array, Float32Array];
  expect(second).toEqual(first);
  expect(other).not.toEqual(first);
  // embed and head 2·32·16, per layer 16·16·2 + 8·16·2 + 3·16·32 + 2·16, final norm 16
  const count = [...a.parameters().values()].reduce((sum, { shape }) => sum + shape.reduce((x, y) => x * y, 1), 0);
  expect(count).toBe(2 * 32 * 16 + 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 32 + 2 * 16) + 16);
  for (const output of outputs) output.dispose();
  for (const tensor of [batch.tokenIds, batch.keysFrom, batch.keysTo]) tensor.dispose();
  for (const model of [a, b, c]) model.dispose();
  expect(memory().numTensors).toBe(before);
});
