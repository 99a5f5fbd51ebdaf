import { initializeModel, type Model } from '@niwaki/nn';

/** Config of the smallest model with everything in it: 2 layers, 4 heads on 2 kv heads of size 4, 5,712 parameters. */
export const tinyLlamaConfig = {
  model_type: 'llama',
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 4,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
  // Wide, so that the logits of untrained weights differ by more than rounding.
  initializer_range: 0.2,
} as const;

/**
 * A random Llama in dense f32, the same seed gives the same weights on every device.
 * @param config fields that differ from `tinyLlamaConfig`
 * @param options `trainable`: whether the parameters are, default true
 */
export const tinyLlama = (
  config: Readonly<Record<string, unknown>> = {},
  { seed = 1, trainable = true }: { seed?: number; trainable?: boolean } = {},
): Promise<Model> => initializeModel({ ...tinyLlamaConfig, ...config }, { seed, trainable, source: 'tiny-llama' });
