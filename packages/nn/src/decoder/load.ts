import { abs, max, sub, tidy, type Parameter } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { Ask, Family, FamilyInput } from '../families.ts';
import { readDecoderConfig, type DecoderConfig, type DecoderFamily } from './config.ts';
import { createDecoder } from './decoder.ts';
import type { BlockWeights, Linear } from './weights.ts';

/** A family of decoders, loaded tensor by tensor under Hugging Face's names. */
export const decoderFamily =
  (family: DecoderFamily): Family =>
  async (input) => {
    const config = readDecoderConfig(input.config, family);
    const { ask } = input;
    const matrix = [config.vocabularySize, config.width] as const;
    const fields = 'vocab_size, hidden_size';
    const embedding = await ask.weight('model.embed_tokens.weight', matrix, 'embedding', fields);
    const blocks: BlockWeights[] = [];
    for (let layer = 0; layer < config.layers; layer++) blocks.push(await loadBlock(config, layer, ask));
    const norm = await ask.vector('model.norm.weight', [config.width], 'norm', 'hidden_size');
    const own = config.tied
      ? await ask.optional('lm_head.weight', matrix, 'head', fields)
      : await ask.weight('lm_head.weight', matrix, 'head', fields);
    ask.settle();
    const head = config.tied ? await tiedHead(embedding, own, input) : own!;
    const tied = head === embedding;
    return createDecoder(
      config,
      { embedding, blocks, norm, head },
      {
        family,
        config: { ...input.config, model_type: family, tie_word_embeddings: tied },
        vocabularySize: config.vocabularySize,
        contextLength: config.contextLength,
        hiddenSize: config.width,
        source: input.source,
      },
    );
  };

async function loadBlock(config: DecoderConfig, layer: number, ask: Ask): Promise<BlockWeights> {
  const { width, heads, kvHeads, headSize, mlpWidth, biases, headNorm } = config;
  const path = `model.layers.${layer}`;
  const linear = async (
    name: string,
    shape: readonly [number, number],
    fields: readonly [string, string],
    bias: boolean,
  ): Promise<Linear> => ({
    weight: await ask.weight(`${path}.${name}.weight`, shape, 'matrix', fields.join(', ')),
    bias: bias ? await ask.vector(`${path}.${name}.bias`, [shape[0]], 'bias', fields[0]) : undefined,
  });
  const norm = (name: string, size: number, field: string): Promise<Parameter> =>
    ask.vector(`${path}.${name}.weight`, [size], 'norm', field);
  const [queries, keys] = [heads * headSize, kvHeads * headSize];
  const queryField = 'num_attention_heads x head_dim';
  const keyField = 'num_key_value_heads x head_dim';
  return {
    inputNorm: await norm('input_layernorm', width, 'hidden_size'),
    q: await linear('self_attn.q_proj', [queries, width], [queryField, 'hidden_size'], biases.qkv),
    k: await linear('self_attn.k_proj', [keys, width], [keyField, 'hidden_size'], biases.qkv),
    v: await linear('self_attn.v_proj', [keys, width], [keyField, 'hidden_size'], biases.qkv),
    o: await linear('self_attn.o_proj', [width, queries], ['hidden_size', queryField], biases.output),
    queryNorm: headNorm ? await norm('self_attn.q_norm', headSize, 'head_dim') : undefined,
    keyNorm: headNorm ? await norm('self_attn.k_norm', headSize, 'head_dim') : undefined,
    mlpNorm: await norm('post_attention_layernorm', width, 'hidden_size'),
    gate: await linear('mlp.gate_proj', [mlpWidth, width], ['intermediate_size', 'hidden_size'], biases.mlp),
    up: await linear('mlp.up_proj', [mlpWidth, width], ['intermediate_size', 'hidden_size'], biases.mlp),
    down: await linear('mlp.down_proj', [width, mlpWidth], ['hidden_size', 'intermediate_size'], biases.mlp),
  };
}

/** The config says tied: a head in the file is dropped if it is the embedding again, and kept, with a warning, if it is not. */
async function tiedHead(embedding: Weight, own: Weight | undefined, { warn, source }: FamilyInput): Promise<Weight> {
  if (own === undefined) return embedding;
  if (await equalMatrices(embedding, own)) {
    disposeWeight(own);
    return embedding;
  }
  warn(`${source}: the config ties lm_head to the embeddings, but the file holds another lm_head.weight; it is used, untied.`);
  return own;
}

const chunkRows = 4096;

async function equalMatrices(a: Weight, b: Weight): Promise<boolean> {
  for (let from = 0; from < a.shape[0]; from += chunkRows) {
    const rows = [from, Math.min(a.shape[0], from + chunkRows)] as const;
    const distance = tidy(() => max(abs(sub(a.dense(rows), b.dense(rows)))));
    const [value] = await distance.data();
    distance.dispose();
    if (value !== 0) return false;
  }
  return true;
}
