/** A model small enough to calibrate in a test, its widths multiples of every group that methods take. */
export const calibrationConfig = {
  model_type: 'llama',
  vocab_size: 40,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 32,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  rope_theta: 10000,
  tie_word_embeddings: false,
  initializer_range: 0.2,
};

/** Ids in cycles of different lengths: some inputs are large far more often than others. */
export const calibrationSequences = (count: number, length: number): number[][] =>
  Array.from({ length: count }, (_, b) => Array.from({ length }, (__, t) => (t * (b + 1) + (t % 3) * b) % calibrationConfig.vocab_size));

/** ‖a − b‖ / ‖b‖. */
export const relativeDistance = (a: Float32Array, b: Float32Array): number =>
  Math.sqrt(a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0) / b.reduce((sum, value) => sum + value ** 2, 0));
