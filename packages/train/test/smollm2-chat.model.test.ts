/** A real model that talks, and one adapted by Python's PEFT, out of a GGUF file with 4-bit blocks. */
import { load, type Loaded } from '@niwaki/hub';
import { adapterFiles } from '@niwaki/lowrank';
import { deleteAdapter, loadAdapter, type ScalableAdapter } from '@niwaki/peft';
import { generate } from '@niwaki/nn';
import { memory } from '@niwaki/tensor';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { adapterAt, chats, distance, file, logSumExps, missing, tell, trace } from './support/smollm2.ts';

// f32 on both sides, 30 layers of sums in another order.
const tolerance = 5e-3;

describe.skipIf(missing)('SmolLM2-135M-Instruct', () => {
  let loaded: Loaded;
  beforeAll(async () => {
    loaded = await load(file!);
  }, 120_000);
  afterAll(() => loaded.model.dispose());

  it('answers a chat as the reference does, token by token and as text', async () => {
    const { model, tokenizer } = loaded;
    const before = memory().numTensors;
    for (const { messages, greedy, greedy_text } of chats()) {
      const ids: number[] = [];
      const stream = tokenizer!.streamDecoder();
      let text = '';
      const prompt = tokenizer!.encodeChat(messages, { addGenerationPrompt: true });
      const seconds = (): number => process.cpuUsage().user / 1e6;
      const times = [seconds()];
      for await (const { id } of generate(model, prompt, { stopIds: tokenizer!.eosIds })) {
        ids.push(id);
        text += stream.push(id);
        times.push(seconds());
      }
      expect(ids).toEqual(greedy);
      expect(text + stream.end()).toBe(greedy_text);
      const perToken = (times.at(-1)! - times[1]!) / (ids.length - 1);
      tell(
        `SmolLM2 chat: ${prompt.length} tokens read in ${(times[1]! - times[0]!).toFixed(2)} CPU s, then ${(1 / perToken).toFixed(1)} tokens a CPU s`,
      );
    }
    expect(memory().numTensors).toBe(before);
  });

  it("reads Python's adapter over the file's blocks to the logits of the reference, in the order of its q and k rows", async () => {
    const { model } = loaded;
    const { batches, final_batch0_logsumexp } = trace();
    const expected = final_batch0_logsumexp.flat();
    const before = memory().numTensors;
    const base = await logSumExps(model, batches[0]!);
    // What the adapter changes is far more than the tolerance.
    expect(distance(base, expected)).toBeGreaterThan(1);
    const set = await loadAdapter(model, adapterAt('final'), { name: 'python', types: adapterFiles });
    const adapted = await logSumExps(model, batches[0]!);
    expect(distance(adapted, expected)).toBeLessThan(tolerance);
    tell(
      `SmolLM2 with PEFT's adapter: logits differ by ${distance(adapted, expected).toExponential(1)}, without it by ${distance(base, expected).toFixed(1)}`,
    );
    // llama.cpp's files interleave the rows of q and k within each head: an adapter that missed this would show here.
    for (const [path, adapter] of set.sites) if (/\.[qk]_proj$/.test(path)) (adapter as ScalableAdapter).strength = 0;
    expect(distance(await logSumExps(model, batches[0]!), expected)).toBeGreaterThan(20 * tolerance);
    deleteAdapter(model, 'python');
    expect(await logSumExps(model, batches[0]!)).toEqual(base);
    expect(memory().numTensors).toBe(before);
  });
});
