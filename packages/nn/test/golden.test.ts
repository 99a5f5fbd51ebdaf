import { describe, expect, it } from 'vitest';
import { memory, tensor2d, type Tensor } from '@niwaki/tensor';
import { forward } from '@niwaki/nn';
import { hasShared } from '../../testing/src/shared.ts';
import { goldenIo, goldenModel, type GoldenIo } from './golden.ts';

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

/** A golden's batch: padded keys on the left are not seen, positions count the padding as the reference does. */
export function batchOf({ input_ids: ids, attention_mask: mask }: GoldenIo): { tokenIds: Tensor; keysFrom: Tensor; keysTo: Tensor } {
  const from = mask.map((row) => row.map(() => row.indexOf(1)));
  const to = mask.map((row) => row.map((seen, t) => (seen === 1 ? t + 1 : 0)));
  const int = (rows: number[][]): Tensor => tensor2d(rows, undefined, 'int32');
  return { tokenIds: int(ids), keysFrom: int(from), keysTo: int(to) };
}

/** Largest difference over the rows that are not padding. */
export function distance(values: ArrayLike<number>, expected: readonly number[], { attention_mask: mask }: GoldenIo): number {
  const width = expected.length / mask.flat().length;
  let worst = 0;
  for (const [row, seen] of mask.flat().entries()) {
    if (seen === 0) continue;
    for (let i = row * width; i < (row + 1) * width; i++) worst = Math.max(worst, Math.abs(values[i]! - expected[i]!));
  }
  return worst;
}

describe.skipIf(!hasShared)('decoder families against the reference', () => {
  it.each(models)('%s gives the logits and hidden states of the reference', async (name) => {
    const before = memory().numTensors;
    const io = goldenIo(name);
    const model = await goldenModel(name);
    const batch = batchOf(io);
    const emitted = new Map<string, Tensor[]>();
    const logits = forward(model, batch, { emitted });
    expect(logits.shape).toEqual(io.logits_shape);
    expect(distance(await logits.data(), io.logits, io)).toBeLessThan(tolerance);
    const hidden = { 'model.embed_tokens': io.hidden0, 'model.layers.0': io.hidden1, 'model.norm': io.hidden_last };
    for (const [path, expected] of Object.entries(hidden)) {
      expect({ path, near: distance(await emitted.get(path)![0]!.data(), expected, io) < tolerance }).toEqual({ path, near: true });
    }
    for (const tensor of [logits, ...Object.values(batch), ...[...emitted.values()].flat()]) tensor.dispose();
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
