import type { Parameter } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import { createDecoder, readDecoderConfig, type Linear, type Model } from '@niwaki/nn';

/** The shape of Llama 2 with 7 billion parameters. */
export const sevenBillion = {
  num_hidden_layers: 32,
  hidden_size: 4096,
  num_attention_heads: 32,
  vocab_size: 32_000,
  intermediate_size: 11_008,
} as const;

/** A Llama of a size that fits nowhere: its matrices and norms are shapes, which can be counted and chosen and no more. */
export function outlineLlama(fields: Readonly<Record<string, number>>): Model {
  const config = readDecoderConfig({ model_type: 'llama', ...fields }, 'llama');
  const { width, heads, kvHeads, headSize, mlpWidth, vocabularySize } = config;
  const parameter = (path: string, shape: readonly number[], role: Parameter['role']): Parameter =>
    ({ path, shape, role, trainable: true, dispose: () => {} }) as unknown as Parameter;
  const norm = (path: string): Parameter => parameter(`${path}.weight`, [width], 'norm');
  const linear = (path: string, ...shape: [out: number, width: number]): Linear => ({
    weight: { kind: 'dense', options: {}, shape, parts: { weight: parameter(`${path}.weight`, shape, 'matrix') } } as unknown as Weight,
  });
  const blocks = Array.from({ length: config.layers }, (_, layer) => {
    const at = (name: string): string => `model.layers.${layer}.${name}`;
    return {
      inputNorm: norm(at('input_layernorm')),
      mlpNorm: norm(at('post_attention_layernorm')),
      q: linear(at('self_attn.q_proj'), heads * headSize, width),
      k: linear(at('self_attn.k_proj'), kvHeads * headSize, width),
      v: linear(at('self_attn.v_proj'), kvHeads * headSize, width),
      o: linear(at('self_attn.o_proj'), width, heads * headSize),
      gate: linear(at('mlp.gate_proj'), mlpWidth, width),
      up: linear(at('mlp.up_proj'), mlpWidth, width),
      down: linear(at('mlp.down_proj'), width, mlpWidth),
    };
  });
  const [embedding, head] = ['model.embed_tokens', 'lm_head'].map((path) => linear(path, vocabularySize, width).weight) as [Weight, Weight];
  return createDecoder(
    config,
    { embedding, head, norm: norm('model.norm'), blocks },
    { family: 'llama', config: {}, vocabularySize, contextLength: 1, hiddenSize: width, source: 'outline' },
  );
}
