import { hasShared, modelPath, sharedJson } from '../../testing/src/shared.ts';
import { memory, tensor2d } from '@niwaki/tensor';
import { forward } from '@niwaki/nn';
import { beforeAll, describe, expect, test } from 'vitest';
import { fileSource, load, type Loaded } from '../src/index.ts';

const path = modelPath('smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf');

interface Reference {
  readonly logits: readonly { ids: number[]; last_top10_ids: number[]; last_top10: number[]; logsumexp: number[]; mean: number[] }[];
}

describe.skipIf(!hasShared || path === undefined)('SmolLM2-135M-Instruct from GGUF', () => {
  let loaded: Loaded;
  let live: number;
  let peak = 0;
  let held = 0;
  beforeAll(async () => {
    live = memory().numTensors;
    const before = process.memoryUsage();
    loaded = await load(path!, {
      onProgress: () => {
        const { arrayBuffers, external } = process.memoryUsage();
        peak = Math.max(peak, arrayBuffers - before.arrayBuffers, external - before.external);
      },
    });
    held = memory().numBytes;
  }, 120_000);
  test('loads whole, with its config, tokenizer and nothing to say', async () => {
    expect(loaded.warnings).toEqual([]);
    expect(loaded.config).toMatchObject({
      model_type: 'llama',
      num_hidden_layers: 30,
      num_key_value_heads: 3,
      tie_word_embeddings: true,
      rope_theta: 100_000,
    });
    expect(loaded.tokenizer!.encode('Hello world')).toEqual([19556, 905]);
    const entries = [...loaded.model.parameters().values()].reduce(
      (sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1),
      0,
    );
    expect(entries).toBe(134_515_008);
  });

  test('stays packed: what it holds is what the file holds, and the peak is little more', async () => {
    const source = await fileSource(path!);
    await source.close?.();
    expect(held / source.size).toBeLessThan(1.01);
    // The wasm heap is not in these numbers where it grew before; the host's own buffers are.
    expect(peak / source.size).toBeLessThan(1.3);
  });

  test('logits are those of the reference on the same weights', async () => {
    for (const { ids, last_top10_ids, last_top10, logsumexp, mean } of sharedJson<Reference>('models/smollm2-135m-instruct/reference.json')
      .logits) {
      const tokenIds = tensor2d([ids], undefined, 'int32');
      const logits = forward(loaded.model, { tokenIds });
      const values = (await logits.data()) as Float32Array;
      const width = loaded.model.info.vocabularySize;
      const row = (t: number): Float32Array => values.subarray(t * width, (t + 1) * width);
      for (const t of ids.keys()) {
        const top = row(t).reduce((most, value) => Math.max(most, value), -Infinity);
        const sum = row(t).reduce((total, value) => total + Math.exp(value - top), 0);
        expect(Math.abs(top + Math.log(sum) - logsumexp[t]!)).toBeLessThan(2e-3);
        expect(Math.abs(row(t).reduce((total, value) => total + value, 0) / width - mean[t]!)).toBeLessThan(2e-3);
      }
      const last = row(ids.length - 1);
      last_top10_ids.forEach((id, i) => expect(Math.abs(last[id]! - last_top10[i]!)).toBeLessThan(5e-3));
      logits.dispose();
      tokenIds.dispose();
    }
  });

  test('gives everything back', () => {
    loaded.model.dispose();
    expect(memory().numTensors).toBe(live);
  });
});
