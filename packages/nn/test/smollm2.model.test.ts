/** A real model, read from 4-bit blocks, against the reference on the same weights widened to f32. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { crossEntropy, memory, slice, sum, tensor1d, tensor2d, tidy, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { forward, generate, runStages, type Model } from '@niwaki/nn';
import { load, type Tokenizer } from '../../hub/src/index.ts';
import { hasShared, modelPath, sharedBytes, sharedJson } from '../../testing/src/shared.ts';

const path = modelPath('smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf');

interface Reference {
  readonly logits: readonly {
    ids: number[];
    last_top10_ids: number[];
    last_top10: number[];
    logsumexp: number[];
    first_row_head: number[];
  }[];
  readonly greedy: readonly { text: string; ids: number[] }[];
  readonly nll: { tokens: number; nll: number; perplexity: number };
}

// f32 on both sides: 30 layers of sums in another order.
const tolerance = 1e-3;

describe.skipIf(!hasShared || path === undefined)('SmolLM2-135M-Instruct', () => {
  const reference = hasShared ? sharedJson<Reference>('models/smollm2-135m-instruct/reference.json') : (undefined as never);
  let model: Model;
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    const loaded = await load(path!);
    model = loaded.model;
    tokenizer = loaded.tokenizer!;
  }, 300_000);
  afterAll(() => model.dispose());

  it('gives the logits of the reference', async () => {
    const width = model.info.vocabularySize;
    for (const { ids, last_top10_ids, last_top10, logsumexp, first_row_head } of reference.logits) {
      const tokenIds = tensor2d([ids], [1, ids.length], 'int32');
      const logits = forward(model, { tokenIds });
      const values = (await logits.data()) as Float32Array;
      const last = values.subarray((ids.length - 1) * width);
      const pairs: [number, number][] = [
        ...last_top10_ids.map((id, i): [number, number] => [last[id]!, last_top10[i]!]),
        ...first_row_head.map((value, i): [number, number] => [values[i]!, value]),
        ...logsumexp.map((value, t): [number, number] => [logSumExp(values.subarray(t * width, (t + 1) * width)), value]),
      ];
      expect(Math.max(...pairs.map(([given, expected]) => Math.abs(given - expected)))).toBeLessThan(tolerance);
      logits.dispose();
      tokenIds.dispose();
    }
  });

  it('continues prompts greedily as the reference does, and leaves nothing behind', async () => {
    const before = memory().numTensors;
    for (const { text, ids } of reference.greedy) {
      const made: number[] = [];
      for await (const { id } of generate(model, tokenizer.encode(text), { maxNewTokens: ids.length })) made.push(id);
      expect(made).toEqual(ids);
    }
    expect(memory().numTensors).toBe(before);
  });

  it('has the perplexity of the reference on running text, within 0.1 %', async () => {
    const text = new TextDecoder().decode(sharedBytes('models/smollm2-135m-instruct/text.txt'));
    const ids = tokenizer.encode(text).slice(0, 2048);
    let nll = 0;
    for (let from = 0; from < ids.length; from += 256) nll += await nllOf(model, ids.slice(from, from + 256));
    const perplexity = Math.exp(nll / reference.nll.tokens);
    expect(Math.abs(perplexity / reference.nll.perplexity - 1)).toBeLessThan(1e-3);
  });
});

function logSumExp(row: Float32Array): number {
  const peak = row.reduce((most, value) => Math.max(most, value), -Infinity);
  return peak + Math.log(row.reduce((total, value) => total + Math.exp(value - peak), 0));
}

/** Summed loss of a window whose first token is given; the head runs on 64 rows at a time. */
async function nllOf(model: Model, ids: readonly number[]): Promise<number> {
  const tokenIds = tensor2d([[...ids]], [1, ids.length], 'int32');
  const call = createCall({ batch: { tokenIds } });
  const stages = model.stages();
  const { h } = runStages(stages.slice(0, -1), {}, call) as { h: Tensor2D };
  let total = 0;
  for (let from = 0; from < ids.length - 1; from += 64) {
    const rows = Math.min(64, ids.length - 1 - from);
    const loss = tidy(() => {
      const { logits } = stages.at(-1)!.run({ h: slice(h, [from, 0], [rows, h.shape[1]]) }, call) as { logits: Tensor2D };
      return sum(crossEntropy(logits, tensor1d(ids.slice(from + 1, from + 1 + rows), 'int32') as Tensor1D));
    });
    total += (await loss.data())[0]!;
    loss.dispose();
  }
  h.dispose();
  tokenIds.dispose();
  return total;
}
