import { describe, expect, it } from 'vitest';
import { AbortError, ConfigError, DataError, fill, memory, withAdapters, type Tensor4D } from '@niwaki/tensor';
import { createKeyValueCache, forward, generate, tokenBatch, type GeneratedToken, type GenerateOptions, type Model } from '@niwaki/nn';
import { encodeGgufBlocks, ggufBlock, rowsOfTensor } from '@niwaki/weights';
import { hasShared } from '../../testing/src/shared.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { setOf } from './adapter-set.ts';
import { goldenIo, goldenModel } from './golden.ts';
import { disposeBatch, largestDifference, logitsOfRows } from './numbers.ts';

const collect = async (model: Model, prompt: readonly number[], options: GenerateOptions): Promise<GeneratedToken[]> => {
  const tokens: GeneratedToken[] = [];
  for await (const token of generate(model, prompt, options)) tokens.push(token);
  return tokens;
};
const idsOf = async (...args: Parameters<typeof collect>): Promise<number[]> => (await collect(...args)).map(({ id }) => id);

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

describe.skipIf(!hasShared)('greedy continuations of the reference', () => {
  it.each(models)('%s continues as the reference with and without cache', async (name) => {
    const before = memory().numTensors;
    const model = await goldenModel(name);
    const expected = goldenIo(name).greedy_from_first4;
    for (const cache of [true, false]) {
      const ids = await idsOf(model, expected.slice(0, 4), { maxNewTokens: expected.length - 4, stopIds: [], cache });
      expect(ids).toEqual(expected.slice(4));
    }
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});

it('samples the same tokens from the same seed, cached or not, and others from another seed', async () => {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const options = { maxNewTokens: 24, temperature: 1.5, topK: 20, topP: 0.95, stopIds: [] };
  const first = await idsOf(model, [1, 2], { ...options, seed: 3 });
  expect(await idsOf(model, [1, 2], { ...options, seed: 3 })).toEqual(first);
  expect(await idsOf(model, [1, 2], { ...options, seed: 3, cache: false })).toEqual(first);
  expect(await idsOf(model, [1, 2], { ...options, seed: 4 })).not.toEqual(first);
  expect(new Set(first).size).toBeGreaterThan(3);
  model.dispose();
  expect(memory().numTensors).toBe(before);
});

it('leaves nothing behind where the model goes away between two tokens', async () => {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const tokens = generate(model, [1, 2], { stopIds: [] });
  await tokens.next();
  model.dispose();
  await expect(tokens.next()).rejects.toThrow(/was disposed/);
  expect(memory().numTensors).toBe(before);
});

it('never repeats under a heavy repetition penalty while unseen tokens are left', async () => {
  const model = await tinyLlama();
  const ids = [1, 2, ...(await idsOf(model, [1, 2], { maxNewTokens: 12, repetitionPenalty: 1e6, stopIds: [] }))];
  // Seen tokens end at 0 or far below; while some unseen logit is positive, it wins.
  expect(new Set(ids).size).toBe(ids.length);
  model.dispose();
});

it('ends at a stop id or at the length, says which, and reports log-probabilities of the model', async () => {
  const model = await tinyLlama();
  const long = await collect(model, [1, 2], { maxNewTokens: 6, stopIds: [], logProbabilities: true });
  expect(long.map(({ finish }) => finish)).toEqual([undefined, undefined, undefined, undefined, undefined, 'length']);
  expect(long.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5]);
  const first = long.findIndex(({ id }) => id === long[3]!.id);
  const stopped = await collect(model, [1, 2], { maxNewTokens: 6, stopIds: [long[3]!.id] });
  expect(stopped.at(-1)).toEqual({ id: long[3]!.id, index: first, finish: 'stop' });
  const logits = (await logitsOfRows(model, [[1, 2]])).subarray(32);
  const total = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
  expect(long[0]!.logProbability!).toBeCloseTo(Math.max(...logits) - total, 5);
  model.dispose();
});

it('takes the end of the text from the config where no stop id is given', async () => {
  const free = await tinyLlama();
  const [, second] = await idsOf(free, [1, 2], { maxNewTokens: 2 });
  const model = await tinyLlama({ eos_token_id: [second] });
  expect((await collect(model, [1, 2], { maxNewTokens: 9 })).at(-1)).toMatchObject({ id: second, finish: 'stop' });
  free.dispose();
  model.dispose();
});

it('frees its cache when the caller leaves early or aborts', async () => {
  const model = await tinyLlama();
  const before = memory().numTensors;
  for await (const { index } of generate(model, [1, 2], { stopIds: [] })) if (index === 2) break;
  expect(memory().numTensors).toBe(before);
  const controller = new AbortController();
  const run = async (): Promise<void> => {
    for await (const { index } of generate(model, [1, 2], { stopIds: [], signal: controller.signal })) if (index === 2) controller.abort();
  };
  await expect(run()).rejects.toThrow(AbortError);
  expect(memory().numTensors).toBe(before);
  model.dispose();
});

it('refuses prompts and options that cannot be used', async () => {
  const model = await tinyLlama();
  await expect(collect(model, [], {})).rejects.toThrow(DataError);
  await expect(collect(model, [32], {})).rejects.toThrow(/outside the vocabulary/);
  await expect(collect(model, [-1], {})).rejects.toThrow(DataError);
  for (const bad of [
    { temperature: -1 },
    { topK: 0 },
    { topP: 0 },
    { topP: 1.5 },
    { repetitionPenalty: 0 },
    { maxNewTokens: 1.5 },
    { activations: 'int4' as 'int8' },
  ]) {
    await expect(collect(model, [1], bad)).rejects.toThrow(ConfigError);
  }
  model.dispose();
});

it('rounds what packed matrices multiply, where it is asked to', async () => {
  const before = memory().numTensors;
  const model = await tinyLlama({ hidden_size: 32, head_dim: 8 });
  for (const { path, weight } of model.sites('all-linear')) {
    const [out, width] = weight!.shape;
    const dense = weight!.dense();
    const blocks = await encodeGgufBlocks(path, [out, width], rowsOfTensor(dense), 'Q4_1');
    dense.dispose();
    model.replace(path, ggufBlock(path, [out, width], 'Q4_1', blocks));
  }
  const probabilities = async (options: GenerateOptions): Promise<number[]> =>
    (await collect(model, [1, 2, 3, 4, 5], { maxNewTokens: 6, stopIds: [], logProbabilities: true, ...options })).map(
      (token) => token.logProbability!,
    );
  const exact = await probabilities({});
  expect(await probabilities({ activations: 'exact' })).toEqual(exact);
  const differences: number[] = [];
  for (const activations of ['int16', 'int8'] as const) {
    const rounded = await probabilities({ activations });
    // The prompt's five rows are multiplied exactly, and so is the dense head.
    expect(rounded[0]).toBe(exact[0]);
    differences.push(Math.abs(rounded[1]! - exact[1]!));
  }
  const [int16, int8] = differences;
  expect(int16).toBeGreaterThan(0);
  expect(int16).toBeLessThan(1e-3);
  expect(int8).toBeGreaterThan(int16!);
  expect(int8).toBeLessThan(0.1);
  model.dispose();
  expect(memory().numTensors).toBe(before);
});

it('grows by many rows at once, and gives what it gives without a cache', async () => {
  const model = await tinyLlama();
  const options = { maxNewTokens: 70, stopIds: [] };
  const prompt = Array.from({ length: 60 }, (_, i) => (7 * i) % 32);
  expect(await idsOf(model, prompt, options)).toEqual(await idsOf(model, prompt, { ...options, cache: false }));
  model.dispose();

  const cache = createKeyValueCache();
  const rows = (count: number): Tensor4D => fill([1, count, 2, 4], count) as Tensor4D;
  const extend = (count: number): Tensor4D => {
    const fresh = rows(count);
    const { k } = cache.extend('layer', fresh, fresh);
    fresh.dispose();
    cache.advance(count);
    return k;
  };
  extend(60);
  const full = extend(4).dataSync();
  expect(full.length).toBe(64 * 8);
  const grown = extend(3);
  expect(grown.shape).toEqual([1, 128, 2, 4]);
  expect([...grown.dataSync()].filter((_, i) => i % 8 === 0)).toEqual([
    ...Array(60).fill(60),
    ...Array(4).fill(4),
    3,
    3,
    3,
    ...Array(61).fill(0),
  ]);
  cache.dispose();
});

it('generates under a view of adapters', async () => {
  const model = await tinyLlama();
  const base = await idsOf(model, [1, 2], { maxNewTokens: 8, stopIds: [] });
  model.attach(setOf('one', model.sites('all-linear'), { scale: 4 }));
  expect(await idsOf(model, [1, 2], { maxNewTokens: 8, stopIds: [], view: withAdapters('none') })).toEqual(base);
  expect(await idsOf(model, [1, 2], { maxNewTokens: 8, stopIds: [] })).not.toEqual(base);
  model.dispose();
});

it('continues from a cache cut back to a shorter past', async () => {
  const model = await tinyLlama();
  const before = memory().numTensors;
  const cache = createKeyValueCache();
  const feed = async (ids: readonly number[], past: number): Promise<Float32Array> => {
    const batch = tokenBatch([ids], { vocabularySize: 32 });
    const positions = ids.map((_, i) => past + i);
    const { tokenIds } = batch;
    const logits = forward(model, { tokenIds, positions }, { session: { cache } });
    const values = (await logits.data()) as Float32Array;
    logits.dispose();
    disposeBatch(batch);
    return values;
  };
  await feed([1, 2, 3], 0);
  await feed([9, 9], 3);
  expect(cache.length).toBe(5);
  // 2 layers x 2 (k, v) x 64 rows x 2 heads x 4 x 4 bytes
  expect(cache.bytes()).toBe(2 * 2 * 64 * 2 * 4 * 4);
  cache.truncate(3);
  const after = await feed([4, 5], 3);
  const whole = await logitsOfRows(model, [[1, 2, 3, 4, 5]]);
  expect(largestDifference(after, whole.subarray(3 * 32))).toBeLessThan(1e-5);
  expect(() => cache.truncate(9)).toThrow();
  cache.dispose();
  expect(memory().numTensors).toBe(before);
  model.dispose();
});
