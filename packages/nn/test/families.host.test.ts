import { describe, expect, it } from 'vitest';
import { ConfigError, NotFoundError, ShapeError, type Parameter, type Role } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import { createModel, families, type HfConfig } from '@niwaki/nn';
import { tinyLlamaConfig } from '../../testing/src/tiny-llama.ts';
import { countOf } from './numbers.ts';

interface Made {
  readonly path: string;
  disposed: boolean;
}

/** Tensors that have a shape and nothing else: enough to count and to miss. */
function shapesOnly({ without = [], shapes = {} }: { without?: readonly string[]; shapes?: Record<string, number[]> } = {}) {
  const made: Made[] = [];
  const parameter = (path: string, given: readonly number[], role: Role): Parameter => {
    const entry: Made = { path, disposed: false };
    made.push(entry);
    return {
      path,
      shape: shapes[path] ?? given,
      role,
      trainable: false,
      version: 0,
      dispose: () => (entry.disposed = true),
    } as unknown as Parameter;
  };
  return {
    made,
    vector: async (path: string, shape: readonly number[], role: Role) =>
      without.includes(path) ? undefined : parameter(path, shape, role),
    weight: async (path: string, shape: readonly [number, number], role: Role): Promise<Weight | undefined> => {
      if (without.includes(path)) return undefined;
      const one = parameter(path, shape, role);
      return { kind: 'shape', options: {}, shape: one.shape as [number, number], parts: { weight: one } } as unknown as Weight;
    },
  };
}

const llama = (hidden: number, layers: number, heads: number, kv: number, mlp: number, vocabulary: number): HfConfig => ({
  model_type: 'llama',
  hidden_size: hidden,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: kv,
  intermediate_size: mlp,
  vocab_size: vocabulary,
  tie_word_embeddings: true,
});

describe('the parameters of published sizes', () => {
  // Computed by hand from the config: embedding + layers · (attention + mlp + norms) + last norm.
  it.each<[string, HfConfig, number]>([
    ['SmolLM2-135M', llama(576, 30, 9, 3, 1536, 49_152), 134_515_008],
    ['SmolLM2-360M', llama(960, 32, 15, 5, 2560, 49_152), 361_821_120],
    ['SmolLM2-1.7B', llama(2048, 24, 32, 32, 8192, 49_152), 1_711_376_384],
    ['Qwen2.5-0.5B', { ...llama(896, 24, 14, 2, 4864, 151_936), model_type: 'qwen2' }, 494_032_768],
    ['Qwen3-0.6B', { ...llama(1024, 28, 16, 8, 3072, 151_936), model_type: 'qwen3', head_dim: 128 }, 596_049_920],
    ['Llama-3.2-1B', llama(2048, 16, 32, 8, 8192, 128_256), 1_235_814_400],
  ])('of %s are as many as published', async (_, config, expected) => {
    const model = await createModel({ config, source: 'shapes', ...shapesOnly({ without: ['lm_head.weight'] }) });
    expect(countOf(model.parameters().values())).toBe(expected);
  });
});

describe('putting a model together', () => {
  it('refuses a family it does not know, and lists those it does', async () => {
    const config = { ...tinyLlamaConfig, model_type: 'mamba' };
    await expect(createModel({ config, source: 's', ...shapesOnly() })).rejects.toThrow(ConfigError);
    await expect(createModel({ config, source: 's', ...shapesOnly() })).rejects.toThrow(/"mamba".*llama, mistral, qwen2, qwen3/);
    expect([...families.keys()]).toContain('llama');
  });

  it('takes families of the caller beside its own', async () => {
    const config = { ...tinyLlamaConfig, model_type: 'grove' };
    const model = await createModel({ config, source: 's', ...shapesOnly(), families: new Map([['grove', families.get('llama')!]]) });
    expect(model.sites('all-linear')).toHaveLength(14);
  });

  it('lists every missing tensor and lets go of what it has', async () => {
    const missing = ['model.layers.1.self_attn.k_proj.weight', 'model.norm.weight', 'lm_head.weight'];
    const parts = shapesOnly({ without: missing });
    const error = await createModel({ config: tinyLlamaConfig, source: 's', ...parts }).catch((reason: unknown) => reason as NotFoundError);
    expect(error).toBeInstanceOf(NotFoundError);
    expect((error as NotFoundError).details['missing']).toEqual(missing);
    expect(parts.made.length).toBe(21 - missing.length);
    expect(parts.made.every(({ disposed }) => disposed)).toBe(true);
  });

  it('names the config fields that a shape disagrees with', async () => {
    const parts = shapesOnly({ shapes: { 'model.layers.0.self_attn.k_proj.weight': [12, 16] } });
    const error = await createModel({ config: tinyLlamaConfig, source: 's', ...parts }).catch((reason: unknown) => reason as ShapeError);
    expect(error).toBeInstanceOf(ShapeError);
    expect((error as ShapeError).message).toContain(
      "'model.layers.0.self_attn.k_proj.weight' is [12,16], the config says [8,16] = [num_key_value_heads x head_dim, hidden_size]",
    );
    expect(parts.made.every(({ disposed }) => disposed)).toBe(true);
  });
});
