import type { GgufFamily } from './families.ts';

/** Tensor names of a block, GGUF's to Hugging Face's, without `.weight` or `.bias`. */
const inBlock: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};
const outside: Readonly<Record<string, string>> = { token_embd: 'model.embed_tokens', output_norm: 'model.norm', output: 'lm_head' };

/** `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; undefined for a name outside the family. */
export function hfName(name: string): string | undefined {
  const match = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(name);
  if (!match) return undefined;
  const [, block, part, kind] = match as unknown as [string, string | undefined, string, string];
  const table = block === undefined ? outside : inBlock;
  if (!Object.hasOwn(table, part)) return undefined;
  return block === undefined ? `${table[part]}.${kind}` : `model.layers.${Number(block)}.${table[part]}.${kind}`;
}

const reversed = (table: Readonly<Record<string, string>>): ReadonlyMap<string, string> =>
  new Map(Object.entries(table).map(([gguf, hf]) => [hf, gguf]));
const hfInBlock = reversed(inBlock);
const hfOutside = reversed(outside);

/** The other way: for writing. */
export function ggufName(name: string): string | undefined {
  const kind = /\.(weight|bias)$/.exec(name)?.[0];
  if (kind === undefined) return undefined;
  const stem = name.slice(0, -kind.length);
  const top = hfOutside.get(stem);
  if (top !== undefined) return top + kind;
  const match = /^model\.layers\.(\d+)\.(.+)$/.exec(stem);
  const part = match && hfInBlock.get(match[2]!);
  return part ? `blk.${match[1]}.${part}${kind}` : undefined;
}

/** Heads by which the rows of a tensor are interleaved in the file, or undefined where they lie as in Hugging Face. */
export function permutedHeads(hf: string, family: GgufFamily, heads: { readonly query: number; readonly key: number }): number | undefined {
  if (!family.permuted) return undefined;
  if (/\.self_attn\.q_proj\.(weight|bias)$/.test(hf)) return heads.query;
  if (/\.self_attn\.k_proj\.(weight|bias)$/.test(hf)) return heads.key;
  return undefined;
}
