import { hasShared, modelPath, sharedJson } from '../../testing/src/shared.ts';
import { FormatError } from '@niwaki/tensor';
import { describe, expect, test } from 'vitest';
import {
  createTokenizer,
  ggufTokenizer,
  metadataReader,
  nodeFolder,
  folderTokenizer,
  type GgufValue,
  type Tokenizer,
} from '../src/index.ts';

interface TokenizerFile {
  readonly added_tokens: readonly { id: number; content: string; special: boolean }[];
  readonly model: { readonly vocab: Readonly<Record<string, number>>; readonly merges: readonly (readonly [string, string])[] };
}
interface Golden {
  readonly cases: readonly { text: string; ids: number[]; ids_no_special: number[]; decoded_keep_special: string }[];
}

const text = (value: string): GgufValue => ({ type: 'string', value });
const texts = (value: readonly string[]): GgufValue => ({ type: 'array', of: 'string', value });
const u32 = (value: number): GgufValue => ({ type: 'u32', value });
const open = (entries: Iterable<readonly [string, GgufValue]>): Tokenizer =>
  createTokenizer(ggufTokenizer(metadataReader(new Map(entries), 'x.gguf'), 'x.gguf')!);

/** The metadata that a converter writes for a tokenizer.json. */
function metadataOf(style: string): Map<string, GgufValue> {
  const { added_tokens: added, model } = sharedJson<TokenizerFile>(`golden/tokenizers/${style}/tokenizer.json`);
  const config = sharedJson<Record<string, string | null>>(`golden/tokenizers/${style}/tokenizer_config.json`);
  const ids = new Map([...Object.entries(model.vocab), ...added.map(({ content, id }) => [content, id] as const)]);
  const tokens = [...ids].sort(([, a], [, b]) => a - b).map(([token]) => token);
  const kind = (token: string): number => {
    if (/^<0x..>$/.test(token)) return 6;
    if (token === config['unk_token'] && style.includes('spm')) return 2;
    return added.some(({ content }) => content === token) ? 3 : 1;
  };
  const metadata = new Map<string, GgufValue>([
    ['tokenizer.ggml.tokens', texts(tokens)],
    ['tokenizer.ggml.token_type', { type: 'array', of: 'i32', value: tokens.map(kind) }],
  ]);
  for (const [key, field] of [
    ['bos', 'bos_token'],
    ['eos', 'eos_token'],
    ['unknown', 'unk_token'],
    ['padding', 'pad_token'],
  ] as const) {
    const id = ids.get(config[field] ?? '');
    if (id !== undefined) metadata.set(`tokenizer.ggml.${key}_token_id`, u32(id));
  }
  return metadata;
}
const mergesOf = (style: string): GgufValue =>
  texts(sharedJson<TokenizerFile>(`golden/tokenizers/${style}/tokenizer.json`).model.merges.map(([a, b]) => `${a} ${b}`));

describe.skipIf(!hasShared)('tokenizers out of GGUF metadata', () => {
  test.each([
    ['gpt2-bytelevel-bpe', 'gpt-2'],
    ['smollm2-style', 'smollm'],
    ['qwen2-style', 'qwen2'],
    ['llama3-style', 'llama-bpe'],
  ])('%s gives the ids of its tokenizer.json', (style, pre) => {
    const tokenizer = open([
      ...metadataOf(style),
      ['tokenizer.ggml.model', text('gpt2')],
      ['tokenizer.ggml.pre', text(pre)],
      ['tokenizer.ggml.merges', mergesOf(style)],
    ]);
    for (const { text: given, ids, ids_no_special, decoded_keep_special } of sharedJson<Golden>(`golden/tokenizers/${style}/io.json`)
      .cases) {
      expect(tokenizer.encode(given, { allowSpecial: true })).toEqual(ids);
      expect(tokenizer.encode(given, { allowSpecial: true, addSpecialTokens: false })).toEqual(ids_no_special);
      expect(tokenizer.decode(ids)).toBe(decoded_keep_special);
    }
  });

  test('SentencePiece scores give the ids of the merges they came from', () => {
    const style = 'llama2-spm-bpe';
    const { model } = sharedJson<TokenizerFile>(`golden/tokenizers/${style}/tokenizer.json`);
    const metadata = metadataOf(style);
    const rank = new Map(model.merges.map(([a, b], i) => [a + b, i]));
    const scores = (metadata.get('tokenizer.ggml.tokens')!.value as string[]).map((token) => -(rank.get(token) ?? 1e6));
    const tokenizer = open([
      ...metadata,
      ['tokenizer.ggml.model', text('llama')],
      ['tokenizer.ggml.scores', { type: 'array', of: 'f32', value: scores }],
    ]);
    for (const { text: given, ids, ids_no_special } of sharedJson<Golden>(`golden/tokenizers/${style}/io.json`).cases) {
      expect(tokenizer.encode(given, { allowSpecial: true })).toEqual(ids);
      expect(tokenizer.encode(given, { allowSpecial: true, addSpecialTokens: false })).toEqual(ids_no_special);
      expect(tokenizer.decode(ids_no_special)).toBe(given);
    }
  });

  test('an unnamed pre-tokenizer splits as llama.cpp does', () => {
    const style = 'gpt2-bytelevel-bpe';
    const tokenizer = open([...metadataOf(style), ['tokenizer.ggml.model', text('gpt2')], ['tokenizer.ggml.merges', mergesOf(style)]]);
    const given = "it's $5.00, 1234567 日本\n\n x";
    expect(tokenizer.decode(tokenizer.encode(given))).toBe(given);
  });

  test('whatever ends a turn ends a generation', () => {
    const tokenizer = open([
      ...metadataOf('llama3-style'),
      ['tokenizer.ggml.model', text('gpt2')],
      ['tokenizer.ggml.pre', text('llama-bpe')],
      ['tokenizer.ggml.merges', mergesOf('llama3-style')],
      ['tokenizer.ggml.eos_token_id', u32(5)],
      ['tokenizer.ggml.eom_token_id', u32(7)],
    ]);
    expect(tokenizer.eosIds).toEqual([5, 7, 1]);
  });

  test('what is not read or does not fit is named', () => {
    const model = [
      ...metadataOf('smollm2-style'),
      ['tokenizer.ggml.model', text('gpt2')],
      ['tokenizer.ggml.merges', mergesOf('smollm2-style')],
    ] as [string, GgufValue][];
    expect(() => open([...model, ['tokenizer.ggml.pre', text('tekken')]])).toThrow(/pre-tokenizer 'tekken'/);
    expect(() => open([...model, ['tokenizer.ggml.model', text('rwkv')]])).toThrow(/'rwkv'/);
    expect(() => open([...model, ['tokenizer.ggml.bos_token_id', u32(100_000)]])).toThrow(/outside the vocabulary/);
    expect(() => open([...model, ['tokenizer.ggml.token_type', { type: 'array', of: 'i32', value: [1] }]])).toThrow(FormatError);
    expect(() => open([...model, ['tokenizer.ggml.merges', texts(['ab'])]])).toThrow(/not two tokens/);
    expect(() => open([...model, ['tokenizer.ggml.tokens', u32(1)]])).toThrow(/expected a list of text/);
    expect(ggufTokenizer(metadataReader(new Map(), 'x'), 'x')).toBeUndefined();
  });
});

const miniLm = modelPath('all-minilm-l6-v2');
describe.skipIf(!hasShared || miniLm === undefined)('MiniLM', () => {
  test('sentences give the reference ids', async () => {
    const { sentences, input_ids, attention_mask } = sharedJson<{ sentences: string[]; input_ids: number[][]; attention_mask: number[][] }>(
      'models/all-minilm-l6-v2/reference.json',
    );
    const tokenizer = createTokenizer((await folderTokenizer(nodeFolder(miniLm!)))!);
    const expected = input_ids.map((ids, i) => ids.filter((_, t) => attention_mask[i]![t] === 1));
    expect(sentences.map((sentence) => tokenizer.encode(sentence))).toEqual(expected);
    expect([tokenizer.padId, tokenizer.vocabularySize]).toEqual([0, 30522]);
  });
});
