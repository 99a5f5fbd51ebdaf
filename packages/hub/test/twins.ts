import {
  decodeFloats,
  encodeFloats,
  encodeGguf,
  ggufName,
  memorySource,
  openSafetensors,
  type GgufValue,
  type LazyTensor,
} from '../src/index.ts';

export type Config = Readonly<Record<string, unknown>>;

/**
 * The GGUF file of a small llama checkpoint, as a converter would write it: its names, rows of q and k interleaved.
 * @param change further metadata and tensors
 */
export async function ggufTwin(
  safetensors: Uint8Array,
  config: Config,
  change: { metadata?: readonly (readonly [string, GgufValue])[]; tensors?: readonly LazyTensor[]; drop?: readonly string[] } = {},
): Promise<Uint8Array> {
  const source = await openSafetensors(memorySource(safetensors));
  const [heads, kvHeads] = [Number(config['num_attention_heads']), Number(config['num_key_value_heads'])];
  const tensors = source
    .names()
    .filter((name) => !change.drop?.includes(name))
    .map((name): LazyTensor => {
      const { shape } = source.info(name);
      const perHead = name.includes('q_proj') ? shape[0]! / heads : name.includes('k_proj') ? shape[0]! / kvHeads : undefined;
      const read = async (): Promise<Uint8Array> => {
        const values = decodeFloats(await source.read(name));
        return encodeFloats(perHead === undefined ? values : interleaved(values, perHead, shape[1] ?? 1), 'F32');
      };
      return { name: ggufName(name)!, dtype: 'F32', shape, read };
    });
  const metadata = new Map([...llamaMetadata(config), ...(change.metadata ?? [])]);
  return encodeGguf(metadata, [...tensors, ...(change.tensors ?? [])]);
}

/** Row p·d/2 + j of each head goes to row 2j + p: hf.reshape(H, 2, d/2, in).swapaxes(1, 2). */
function interleaved(values: Float32Array, perHead: number, width: number): Float32Array {
  const out = new Float32Array(values.length);
  const half = perHead / 2;
  for (let row = 0; row < values.length / width; row++) {
    const head = Math.floor(row / perHead);
    const within = row % perHead;
    const to = head * perHead + 2 * (within % half) + Math.floor(within / half);
    out.set(values.subarray(row * width, (row + 1) * width), to * width);
  }
  return out;
}

/** What a converter says about a llama config. */
export function llamaMetadata(config: Config): Map<string, GgufValue> {
  const u32 = (field: string): GgufValue => ({ type: 'u32', value: Number(config[field]) });
  const f32 = (field: string): GgufValue => ({ type: 'f32', value: Number(config[field]) });
  const headSize = Number(config['head_dim'] ?? Number(config['hidden_size']) / Number(config['num_attention_heads']));
  return new Map<string, GgufValue>([
    ['general.architecture', { type: 'string', value: 'llama' }],
    ['llama.block_count', u32('num_hidden_layers')],
    ['llama.context_length', u32('max_position_embeddings')],
    ['llama.embedding_length', u32('hidden_size')],
    ['llama.feed_forward_length', u32('intermediate_size')],
    ['llama.attention.head_count', u32('num_attention_heads')],
    ['llama.attention.head_count_kv', u32('num_key_value_heads')],
    ['llama.attention.layer_norm_rms_epsilon', f32('rms_norm_eps')],
    ['llama.attention.key_length', { type: 'u32', value: headSize }],
    ['llama.rope.dimension_count', { type: 'u32', value: headSize }],
    ['llama.rope.freq_base', f32('rope_theta')],
  ]);
}

/** The other way: rows as the model wants them. */
export function deinterleaved(values: Float32Array, perHead: number, width: number): Float32Array {
  const rows = values.length / width;
  const order = interleaved(
    Float32Array.from({ length: rows }, (_, row) => row),
    perHead,
    1,
  );
  const out = new Float32Array(values.length);
  order.forEach((to, from) => out.set(values.subarray(from * width, (from + 1) * width), to * width));
  return out;
}
