/** Mistakes that a decoder invites must be seen by the references: each of these variants fails them. */
import { describe, expect, it } from 'vitest';
import { dispose, gather, NotFoundError, ShapeError, slice, tensor1d, tensor2d, tidy, type Tensor } from '@niwaki/tensor';
import { denseParameter } from '@niwaki/tensor';
import { denseWeight } from '@niwaki/weights';
import { createModel, forward, type HfConfig, type Model } from '@niwaki/nn';
import { hasShared } from '../../testing/src/shared.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { goldenIo, goldenModel, goldenBatch, distanceTo } from './golden.ts';

/** How far a changed model is from the reference's logits. */
async function distanceOf(name: string, change: Parameters<typeof goldenModel>[1]): Promise<number> {
  const io = goldenIo(name);
  const model = await goldenModel(name, change);
  const batch = goldenBatch(io);
  const logits = forward(model, batch);
  const far = distanceTo(io.logits, await logits.data(), io);
  dispose([logits, ...Object.values(batch)]);
  model.dispose();
  return far;
}

/** Rows of a matrix [rows, width] in another order. */
const reordered = (values: Float32Array, order: readonly number[]): Float32Array => {
  const width = values.length / order.length;
  return Float32Array.from({ length: values.length }, (_, i) => values[order[Math.floor(i / width)]! * width + (i % width)]!);
};

const wrong = 0.01;

describe.skipIf(!hasShared)('a mistake is far from the reference', () => {
  it('when pairs are rotated interleaved instead of by halves', async () => {
    // Heads of 4: the pairs (0, 2), (1, 3) become (0, 1), (2, 3) when entries 1 and 2 change places.
    const swap = (name: string, values: Float32Array): Float32Array => {
      const rows = name.includes('q_proj') ? 16 : 8;
      if (!/[qk]_proj/.test(name)) return values;
      return reordered(
        values,
        Array.from({ length: rows }, (_, row) => row - (row % 4) + [0, 2, 1, 3][row % 4]!),
      );
    };
    expect(await distanceOf('llama', { tensor: swap })).toBeGreaterThan(wrong);
  });

  it('when kv heads are tiled over the query heads instead of repeated in place', async () => {
    // 4 query heads on 2: head h reads h mod 2 where heads 1 and 2 change places, in q and in the columns of o.
    const heads = [0, 2, 1, 3].flatMap((head) => [0, 1, 2, 3].map((i) => head * 4 + i));
    const tile = (name: string, values: Float32Array): Float32Array => {
      if (name.includes('q_proj')) return reordered(values, heads);
      return name.includes('o_proj') ? Float32Array.from(values, (_, i) => values[i - (i % 16) + heads[i % 16]!]!) : values;
    };
    expect(await distanceOf('llama', { tensor: tile })).toBeGreaterThan(wrong);
  });

  it.each([3, 5])('when the window of 4 keys holds %i', async (sliding_window) => {
    expect(await distanceOf('mistral-swa', { config: (config: HfConfig) => ({ ...config, sliding_window }) })).toBeGreaterThan(wrong);
  });

  it('when the head norms of queries and keys are left out', async () => {
    const flat = (name: string, values: Float32Array): Float32Array => (/[qk]_norm/.test(name) ? values.map(() => 1) : values);
    expect(await distanceOf('qwen3', { tensor: flat })).toBeGreaterThan(wrong);
  });

  it.each(['llama-linear-rope', 'llama-dynamic-rope', 'llama3-rope', 'llama-yarn-rope'])('when %s forgets its stretch', async (name) => {
    const plain = (config: HfConfig): HfConfig => ({ ...config, rope_scaling: undefined });
    expect(await distanceOf(name, { config: plain })).toBeGreaterThan(1e-3);
  });

  it('when the head size is taken as width over heads where the config says otherwise', async () => {
    const divided = (config: HfConfig): HfConfig => ({ ...config, head_dim: 4 });
    await expect(goldenModel('qwen3', { config: divided })).rejects.toThrow(ShapeError);
  });

  it('when qwen2 is read without its biases', async () => {
    const zero = (name: string, values: Float32Array): Float32Array => (name.endsWith('.bias') ? values.map(() => 0) : values);
    expect(await distanceOf('qwen2', { tensor: zero })).toBeGreaterThan(wrong);
  });
});

describe('tied embeddings on disk', () => {
  /** A loader that hands a model's own tensors out again, with another head. */
  async function reload(from: Model, head: (embedding: Tensor) => Tensor | undefined, warnings: string[]): Promise<Model> {
    const embedding = from.parameters().get('model.embed_tokens.weight')!.read();
    const read = (path: string): Tensor | undefined =>
      path === 'lm_head.weight' ? head(embedding) : from.parameters().get(path)?.read().clone();
    return createModel({
      config: from.info.config,
      source: 'again',
      warn: (message) => warnings.push(message),
      weight: async (path, _, role) => {
        const found = read(path);
        return found && denseWeight(denseParameter(path, found, { role }));
      },
      vector: async (path, _, role) => {
        const found = read(path);
        return found && denseParameter(path, found, { role });
      },
    });
  }

  it('stay tied where the file repeats the embedding as a head, and are told apart with a warning where it differs', async () => {
    const tied = await tinyLlama({ tie_word_embeddings: true });
    const warnings: string[] = [];
    const absent = await reload(tied, () => undefined, warnings);
    const repeated = await reload(tied, (embedding) => embedding.clone(), warnings);
    expect([absent, repeated].map((model) => model.info.config['tie_word_embeddings'])).toEqual([true, true]);
    expect(repeated.parameters().has('lm_head.weight')).toBe(false);
    expect(warnings).toEqual([]);
    const other = await reload(
      tied,
      (embedding) =>
        tidy(() =>
          gather(
            embedding,
            tensor1d(
              Array.from({ length: 32 }, (_, i) => 31 - i),
              'int32',
            ),
          ),
        ),
      warnings,
    );
    expect(other.info.config['tie_word_embeddings']).toBe(false);
    expect(other.parameters().has('lm_head.weight')).toBe(true);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/ties lm_head.*untied/);
    for (const model of [tied, absent, repeated, other]) model.dispose();
  });

  it('are an error where the config says untied and the head is missing', async () => {
    const untied = await tinyLlama();
    await expect(reload(untied, () => undefined, [])).rejects.toThrow(NotFoundError);
    untied.dispose();
  });
});

it('positions may be told: restarted ones of packed documents, as numbers or as a tensor', async () => {
  const model = await tinyLlama();
  const tokenIds = tensor2d([[1, 2, 3, 4]], [1, 4], 'int32');
  const given = tensor2d([[0, 1, 0, 1]], [1, 4], 'int32');
  const run = async (positions: Tensor | readonly number[]): Promise<Float32Array> => {
    const logits = forward(model, { tokenIds, positions });
    const last = tidy(() => slice(logits, [0, 3, 0], [1, 1, 32]));
    const values = (await last.data()) as Float32Array;
    dispose([logits, last]);
    return values;
  };
  expect(await run(given)).toEqual(await run([0, 1, 0, 1]));
  expect(await run([0, 1, 2, 3])).not.toEqual(await run([0, 1, 0, 1]));
  // Rotation is relative: a shift of all positions changes nothing beyond rounding.
  const [near, far] = [await run([0, 1, 2, 3]), await run([40, 41, 42, 43])];
  for (const [i, value] of near.entries()) expect(far[i]!).toBeCloseTo(value, 4);
  expect(() => forward(model, { tokenIds, positions: [0, 1] })).toThrow(/positions/);
  dispose([tokenIds, given]);
  model.dispose();
});
