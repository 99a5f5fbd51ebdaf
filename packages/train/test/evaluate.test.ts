import { ConfigError, DataError, memory } from '@niwaki/tensor';
import { initializeModel, type Model } from '@niwaki/nn';
import { byteTokenizer, byteVocabularySize as vocabularySize, tinyLlamaConfig } from '@niwaki/testing';
import { causalLM, disposeBatch, languageBatch } from '@niwaki/engine';
import { expect, it } from 'vitest';
import { evaluateBatch, evaluateText } from '../src/index.ts';

const model = (): Promise<Model> => initializeModel({ ...tinyLlamaConfig, vocab_size: vocabularySize }, { seed: 3, trainable: false });
const tokenizer = byteTokenizer();

it('predicts every token but the first of each window, and leaves no tensor behind', async () => {
  const tiny = await model();
  const text = 'abcdefghij';
  const before = memory().numTensors;
  const score = await evaluateText(tiny, tokenizer, text, { context: 4 });
  expect(memory().numTensors).toBe(before);
  // Windows abcd, efgh, ij: 3 + 3 + 1 tokens of one byte each.
  expect(score.tokens).toBe(7);
  const ids = tokenizer.encode(text);
  let sum = 0;
  for (const window of [ids.slice(0, 4), ids.slice(4, 8), ids.slice(8)]) {
    const batch = languageBatch([{ ids: window }], { vocabularySize });
    for (const loss of await evaluateBatch(tiny, batch, causalLM())) sum += loss;
    disposeBatch(batch);
  }
  expect(score.nll).toBeCloseTo(sum / 7, 10);
  expect(score.perplexity).toBeCloseTo(Math.exp(sum / 7), 6);
  expect(score.bitsPerByte).toBeCloseTo(sum / Math.LN2 / 7, 10);
  tiny.dispose();
});

it('gives the same whatever the number of windows in a forward', async () => {
  const tiny = await model();
  const [one, three] = await Promise.all(
    [1, 3].map((batchSize) => evaluateText(tiny, tokenizer, 'the quick brown fox', { context: 5, batchSize })),
  );
  // f32 sums in another order.
  expect(Math.abs(one!.nll - three!.nll)).toBeLessThan(1e-5);
  tiny.dispose();
});

it('takes the first tokens only, and leaves out a window of one', async () => {
  const tiny = await model();
  expect((await evaluateText(tiny, tokenizer, 'abcdefghij', { context: 4, maxTokens: 5 })).tokens).toBe(3);
  tiny.dispose();
});

it('counts the bytes of characters that predicted tokens complete', async () => {
  const tiny = await model();
  // a, then é in two bytes, then b: the window of 4 predicts the two bytes of é and b, 3 bytes in all.
  const score = await evaluateText(tiny, tokenizer, 'aéb', { context: 4 });
  expect(score.tokens).toBe(3);
  expect(score.bitsPerByte).toBeCloseTo((score.nll * 3) / Math.LN2 / 3, 10);
  // Windows of 2: [a, é1], [é2, b]. The second byte of é is not predicted, so only b counts: 2 tokens, 1 byte.
  const cut = await evaluateText(tiny, tokenizer, 'aéb', { context: 2 });
  expect(cut.tokens).toBe(2);
  expect(cut.bitsPerByte).toBeCloseTo((cut.nll * 2) / Math.LN2 / 1, 10);
  tiny.dispose();
});

it('refuses what it cannot score', async () => {
  const tiny = await model();
  await expect(evaluateText(tiny, tokenizer, 'a')).rejects.toThrow(DataError);
  await expect(evaluateText(tiny, tokenizer, 'abc', { context: 1 })).rejects.toThrow(ConfigError);
  await expect(evaluateText(tiny, tokenizer, 'abc', { context: 65 })).rejects.toThrow(/from 2 to 64, got 65/);
  await expect(evaluateText(tiny, tokenizer, 'abc', { maxTokens: 1 })).rejects.toThrow(/maxTokens/);
  const aborted = AbortSignal.abort();
  await expect(evaluateText(tiny, tokenizer, 'abc', { signal: aborted })).rejects.toThrow(/aborted/);
  tiny.dispose();
});

it('says that a model came without a tokenizer', async () => {
  const tiny = await model();
  await expect(evaluateText(tiny, undefined, 'text')).rejects.toThrow(/evaluateText needs a tokenizer.*\n.*loadTokenizer/s);
  tiny.dispose();
});
