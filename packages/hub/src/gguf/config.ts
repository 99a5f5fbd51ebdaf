import { FormatError, type Json } from '@niwaki/tensor';
import { fitLlama3 } from './rope-divisors.ts';
import type { GgufFamily } from './families.ts';
import type { GgufHeader } from './header.ts';
import type { GgufMetadata } from './metadata.ts';

export interface ConfigParts {
  readonly header: GgufHeader;
  readonly metadata: GgufMetadata;
  readonly family: GgufFamily;
  readonly file: string;
  /** Contents of `rope_freqs.weight`: what each frequency is divided by. */
  readonly divisors?: readonly number[];
}

/** The config.json (v4 names) that says the same as a GGUF file's metadata. Throws FormatError naming the key. */
export function ggufConfig({ header, metadata, family, file, divisors }: ConfigParts): { readonly [field: string]: Json } {
  const key = (name: string): string => `${family.architecture}.${name}`;
  const parts = metadata.number('split.count') ?? 1;
  if (parts > 1) {
    throw new FormatError(`${file} is one of ${parts} parts of a model`, {
      file,
      parts,
      help: 'Join them first, with `llama-gguf-split --merge`.',
    });
  }
  const type = metadata.text('general.type') ?? 'model';
  if (type !== 'model') throw new FormatError(`${file} holds an '${type}', not a model`, { file, type });
  const experts = metadata.number(key('expert_count')) ?? 0;
  if (experts > 0) throw new FormatError(`${file}: a mixture of ${experts} experts is not read from GGUF`, { file, experts });
  const shapes = new Map(header.tensors.map(({ name, shape }) => [name, shape]));
  const embedding = shapes.get('token_embd.weight');
  if (embedding === undefined)
    throw new FormatError(`${file}: tensor 'token_embd.weight' is missing`, { file, tensor: 'token_embd.weight' });

  const width = metadata.required(key('embedding_length'));
  const heads = metadata.required(key('attention.head_count'));
  const rotated = metadata.number(key('rope.dimension_count'));
  const headSize = metadata.number(key('attention.key_length')) ?? width / heads;
  if (rotated !== undefined && rotated !== headSize) {
    throw new FormatError(`${file}: ${rotated} of the ${headSize} numbers of a head are rotated, which is not read`, {
      file,
      rotated,
      headSize,
    });
  }
  const contextLength = metadata.required(key('context_length'));
  const theta = metadata.number(key('rope.freq_base')) ?? 10_000;
  const scaling = ropeScaling({ metadata, key, divisors, contextLength, file, rope: { theta, headSize } });
  const window = metadata.number(key('attention.sliding_window'));
  const ids = (name: string, field: string): Record<string, number> => {
    const id = metadata.number(`tokenizer.ggml.${name}`);
    return id === undefined ? {} : { [field]: id };
  };
  return {
    architectures: [family.architectureClass],
    model_type: family.modelType,
    vocab_size: embedding[0] ?? 0,
    hidden_size: width,
    intermediate_size: metadata.required(key('feed_forward_length')),
    num_hidden_layers: metadata.required(key('block_count')),
    num_attention_heads: heads,
    num_key_value_heads: metadata.number(key('attention.head_count_kv')) ?? heads,
    head_dim: headSize,
    hidden_act: 'silu',
    max_position_embeddings: contextLength,
    rms_norm_eps: metadata.required(key('attention.layer_norm_rms_epsilon')),
    rope_theta: theta,
    ...(scaling === undefined ? {} : { rope_scaling: scaling }),
    ...(window === undefined ? {} : { sliding_window: window }),
    attention_bias: family.modelType !== 'qwen2' && shapes.has('blk.0.attn_q.bias'),
    tie_word_embeddings: !shapes.has('output.weight'),
    ...ids('bos_token_id', 'bos_token_id'),
    ...ids('eos_token_id', 'eos_token_id'),
    ...ids('padding_token_id', 'pad_token_id'),
  };
}

interface Scaling {
  readonly metadata: GgufMetadata;
  readonly key: (name: string) => string;
  readonly divisors: readonly number[] | undefined;
  readonly contextLength: number;
  readonly file: string;
  readonly rope: { readonly theta: number; readonly headSize: number };
}

function ropeScaling({ metadata, key, divisors, contextLength, file, rope }: Scaling): { readonly [field: string]: Json } | undefined {
  if (divisors !== undefined) {
    if (divisors.length !== rope.headSize / 2 || !divisors.every((divisor) => Number.isFinite(divisor) && divisor > 0)) {
      throw new FormatError(
        `${file}: rope_freqs.weight must hold ${rope.headSize / 2} positive divisors, holds ${divisors.length} values`,
        { file, divisors },
      );
    }
    const fitted = fitLlama3(divisors, rope);
    if (fitted !== undefined) {
      const { factor, low, high, trained } = fitted;
      return { rope_type: 'llama3', factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: trained };
    }
    // Divisors of any origin: the one rule of Hugging Face that takes a table, with no change of the attention's scale.
    const table = [...divisors];
    return {
      rope_type: 'longrope',
      short_factor: table,
      long_factor: table,
      factor: 1,
      attention_factor: 1,
      original_max_position_embeddings: contextLength,
    };
  }
  const type = metadata.text(key('rope.scaling.type')) ?? (metadata.has(key('rope.scale_linear')) ? 'linear' : 'none');
  const factor = metadata.number(key('rope.scaling.factor')) ?? metadata.number(key('rope.scale_linear')) ?? 1;
  const trained = metadata.number(key('rope.scaling.original_context_length')) ?? contextLength;
  if (type === 'none' || (type === 'linear' && factor === 1)) return undefined;
  if (type === 'linear') return { rope_type: 'linear', factor };
  if (type === 'yarn') return { rope_type: 'yarn', factor, original_max_position_embeddings: trained };
  throw new FormatError(`${file}: rope scaling '${type}' is not read from GGUF`, { file, type });
}
