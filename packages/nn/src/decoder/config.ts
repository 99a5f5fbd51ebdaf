/** Decoder-only families that share one block: RMS norms, rotary positions, grouped heads, a gated MLP. */
import { ConfigError } from '@niwaki/tensor';
import { readRope, type RopeConfig } from './rope-config.ts';
import { configReader, type ConfigReader } from '../config-reader.ts';

export type DecoderFamily = 'llama' | 'mistral' | 'qwen2' | 'qwen3';

/** What a decoder needs to know, in one spelling, whatever the file's. */
export interface DecoderConfig {
  readonly family: DecoderFamily;
  readonly vocabularySize: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly mlpWidth: number;
  readonly eps: number;
  readonly contextLength: number;
  readonly rope: RopeConfig;
  readonly tied: boolean;
  readonly biases: { readonly qkv: boolean; readonly output: boolean; readonly mlp: boolean };
  /** RMS norm of each query and key head, before the rotation (Qwen 3). */
  readonly headNorm: boolean;
  /** Keys a query sees at most, itself included, per layer; undefined = all before it. */
  readonly windows: readonly (number | undefined)[];
}

interface FamilyDefaults {
  readonly kvHeads?: number;
  readonly headSize?: number;
  readonly contextLength: number;
  biases(read: ConfigReader): DecoderConfig['biases'];
  /** The window of a layer where the file lists no `layer_types`. */
  window(read: ConfigReader, layer: number): number | undefined;
}

const none = (): undefined => undefined;
const qwenWindow = (read: ConfigReader, layer: number): number | undefined =>
  read.flag('use_sliding_window', false) && layer >= read.integer('max_window_layers', 28, { least: 0 })
    ? read.optionalInteger('sliding_window', 4096)
    : undefined;

// What a field means where the file leaves it out is the family's, never a global value.
const defaults: Readonly<Record<DecoderFamily, FamilyDefaults>> = {
  llama: {
    contextLength: 2048,
    biases: (read) => {
      const attention = read.flag('attention_bias', false);
      return { qkv: attention, output: attention, mlp: read.flag('mlp_bias', false) };
    },
    window: none,
  },
  mistral: {
    kvHeads: 8,
    contextLength: 131_072,
    biases: () => ({ qkv: false, output: false, mlp: false }),
    window: (read) => read.optionalInteger('sliding_window', 4096),
  },
  qwen2: {
    contextLength: 32_768,
    biases: () => ({ qkv: true, output: false, mlp: false }),
    window: qwenWindow,
  },
  qwen3: {
    headSize: 128,
    contextLength: 32_768,
    biases: (read) => {
      const attention = read.flag('attention_bias', false);
      return { qkv: attention, output: attention, mlp: false };
    },
    window: qwenWindow,
  },
};

/**
 * Reads a Hugging Face config.json, old (v4) and new (v5) spellings.
 * @throws ConfigError naming the field that is missing, of a wrong type, or that disagrees with another
 */
export function readDecoderConfig(config: Readonly<Record<string, unknown>>, family: DecoderFamily): DecoderConfig {
  const read = configReader(config, family);
  const own = defaults[family];
  const width = read.integer('hidden_size');
  // Lists are made of this length before any tensor is asked for.
  const layers = read.integer('num_hidden_layers', undefined, { most: 10_000 });
  const heads = read.integer('num_attention_heads');
  const kvHeads = read.integer('num_key_value_heads', own.kvHeads ?? heads);
  const headSize = read.integer('head_dim', own.headSize ?? width / heads);
  const contextLength = read.integer('max_position_embeddings', own.contextLength);
  if (heads % kvHeads !== 0) read.fail('num_key_value_heads', `must divide num_attention_heads = ${heads}, got ${kvHeads}`);
  if (headSize % 2 !== 0) read.fail('head_dim', `must be even for rotary positions, got ${headSize}`);
  const activation = read.text('hidden_act', 'silu');
  if (activation !== 'silu' && activation !== 'swish')
    read.fail('hidden_act', `'silu' is the gate of this family here, got '${activation}'`);
  return {
    family,
    vocabularySize: read.integer('vocab_size'),
    width,
    layers,
    heads,
    kvHeads,
    headSize,
    mlpWidth: read.integer('intermediate_size'),
    eps: read.number('rms_norm_eps', 1e-6),
    contextLength,
    rope: readRope(config, { family, headSize, contextLength }),
    tied: read.flag('tie_word_embeddings', false),
    biases: own.biases(read),
    headNorm: family === 'qwen3',
    windows: readWindows(read, own, layers),
  };
}

function readWindows(read: ConfigReader, own: FamilyDefaults, layers: number): readonly (number | undefined)[] {
  const types = read.raw('layer_types');
  if (!Array.isArray(types)) return Array.from({ length: layers }, (_, layer) => own.window(read, layer));
  if (types.length !== layers) read.fail('layer_types', `must name ${layers} layers, names ${types.length}`);
  const windows = types.map((type) => {
    if (type === 'full_attention') return undefined;
    if (type === 'sliding_attention') return read.integer('sliding_window');
    return read.fail('layer_types', `knows 'full_attention' and 'sliding_attention', got '${String(type)}'`);
  });
  if (new Set(windows.filter((window) => window !== undefined)).size > 1) throw new ConfigError('internal: layers with different windows');
  return windows;
}
