import { hasShared, modelPath, sharedJson } from '../../testing/src/shared.ts';
import { DataError, FormatError } from '@niwaki/tensor';
import { beforeAll, describe, expect, test } from 'vitest';
import { createTokenizer, fileSource, ggufTokenizer, openGguf, type Tokenizer } from '../src/index.ts';

interface Golden {
  readonly cases: readonly { text: string; ids: number[]; ids_no_special: number[]; decoded: string; decoded_keep_special: string }[];
  readonly pairs: readonly { text: string; pair: string; ids: number[]; type_ids: number[] }[];
  readonly vocab_size: number;
}

const styles = [
  'bert-cased-wordpiece',
  'bert-uncased-wordpiece',
  'gpt2-bytelevel-bpe',
  'llama2-spm-bpe',
  'llama3-style',
  'qwen2-style',
  'roberta-style',
  'smollm2-style',
  'unigram-metaspace',
];
const byteLevel = styles.filter((style) => /gpt2|llama3|qwen2|smollm2/.test(style));
const golden = (style: string): Golden => sharedJson(`golden/tokenizers/${style}/io.json`);
const open = (style: string): Tokenizer =>
  createTokenizer({
    tokenizer: sharedJson(`golden/tokenizers/${style}/tokenizer.json`),
    config: sharedJson(`golden/tokenizers/${style}/tokenizer_config.json`),
  });

describe.skipIf(!hasShared)('against the reference tokenizers', () => {
  test.each(styles)('%s gives the same ids and the same text', (style) => {
    const tokenizer = open(style);
    const { cases, vocab_size } = golden(style);
    expect(tokenizer.vocabularySize).toBe(vocab_size);
    for (const { text, ids, ids_no_special, decoded, decoded_keep_special } of cases) {
      expect(tokenizer.encode(text, { allowSpecial: true })).toEqual(ids);
      expect(tokenizer.encode(text, { allowSpecial: true, addSpecialTokens: false })).toEqual(ids_no_special);
      expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(decoded);
      expect(tokenizer.decode(ids)).toBe(decoded_keep_special);
    }
  });

  test.each(styles)('%s gives the same pairs', (style) => {
    const tokenizer = open(style);
    for (const { text, pair, ids, type_ids } of golden(style).pairs) {
      expect(tokenizer.encodePair(text, pair, { allowSpecial: true })).toEqual({ ids, segments: type_ids });
    }
  });

  test.each(byteLevel)('%s streams the same text that it decodes at once, and gives any string back', (style) => {
    const tokenizer = open(style);
    const texts = [...golden(style).cases.map(({ text }) => text), '👩🏽‍🚀 日本語\r\n\t\t é\u200b', 'x'.repeat(200)];
    for (const text of texts) {
      const ids = tokenizer.encode(text, { addSpecialTokens: false, allowSpecial: true });
      // NFC is a part of this style: what it changes does not come back.
      expect(tokenizer.decode(ids)).toBe(style === 'qwen2-style' ? text.normalize('NFC') : text);
      const stream = tokenizer.streamDecoder();
      const pieces = ids.map((id) => stream.push(id));
      pieces.push(stream.end());
      expect(pieces.slice(0, -1).every((piece) => !piece.includes('\ufffd'))).toBe(true);
      expect(pieces.join('')).toBe(tokenizer.decode(ids));
    }
  });

  test.each(styles)('%s: text that spells a special token stays text unless allowed', (style) => {
    const tokenizer = open(style);
    const { added_tokens } = sharedJson<{ added_tokens: { id: number; content: string; special: boolean }[] }>(
      `golden/tokenizers/${style}/tokenizer.json`,
    );
    // Plain text reaches the unknown token and the byte tokens by right: through what the vocabulary lacks.
    const checked = added_tokens.filter(({ special, content }) => special && !/^(<unk>|\[UNK\]|<0x..>)$/.test(content));
    expect(checked.length).toBeGreaterThan(0);
    for (const { id, content } of checked) {
      const text = `a ${content}b${content}${content} c`;
      const plain = tokenizer.encode(text, { addSpecialTokens: false });
      expect(tokenizer.encode(text, { addSpecialTokens: false, allowSpecial: true })).toContain(id);
      expect(plain).not.toContain(id);
      expect(tokenizer.decode(plain)).toBe(byteLevel.includes(style) ? text : tokenizer.decode(plain));
    }
  });

  test('what is no token id is refused, a row that only pads the embedding reads as nothing', () => {
    const tokenizer = open('smollm2-style');
    expect(() => tokenizer.decode([5, -100])).toThrow(DataError);
    expect(() => tokenizer.decode([1.5])).toThrow(DataError);
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.decode([299, 5000])).toBe('Hello');
  });
});

test('damaged files are typed errors', () => {
  expect(() => createTokenizer({ tokenizer: [] })).toThrow(FormatError);
  expect(() => createTokenizer({ tokenizer: { model: { type: 'Nope' } } })).toThrow(/cannot be used/);
  expect(() => createTokenizer({ tokenizer: { added_tokens: [{ id: -1, content: 'x' }], model: {} } })).toThrow(/added_tokens\.0\.id/);
});

/** Four words of a byte-level vocabulary, with a BOS. */
function tiny({ template, adds, flag }: { template?: string | undefined; adds: boolean; flag?: boolean }): Tokenizer {
  const alphabet = Object.fromEntries(Array.from('abcdefghijklmnopqrstuvwxyzĠ<>|_', (letter, i) => [letter, i + 3]));
  const bos = { SpecialToken: { id: '<|bos|>', type_id: 0 } };
  const a = { Sequence: { id: 'A', type_id: 0 } };
  return createTokenizer({
    tokenizer: {
      added_tokens: ['<|bos|>', '<|im_end|>', '<|im_start|>'].map((content, id) => ({ id, content, special: true, normalized: false })),
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
      decoder: { type: 'ByteLevel' },
      post_processor: adds ? { type: 'TemplateProcessing', single: [bos, a], pair: [bos, a, a], special_tokens: {} } : null,
      model: { type: 'BPE', vocab: alphabet, merges: [] },
    },
    config: { bos_token: '<|bos|>', eos_token: { content: '<|im_end|>' }, chat_template: template, add_bos_token: flag },
  });
}
const body = "{% for m in messages %}<|im_start|>{{ m['content'] | trim }}<|im_end|>{% endfor %}";

describe('one BOS', () => {
  const withBos = `{{ bos_token }}${body}`;
  test.each([
    { name: 'template and post-processor', template: withBos, adds: true },
    { name: 'template alone', template: withBos, adds: false },
    { name: 'post-processor alone', template: body, adds: true },
  ])('$name: exactly one in raw text and in chats', ({ template, adds }) => {
    const tokenizer = tiny({ template, adds });
    const bos = tokenizer.bosId!;
    const count = (ids: number[]): number => ids.filter((id) => id === bos).length;
    const raw = tokenizer.encode('hi');
    const chat = tokenizer.encodeChat([{ role: 'user', content: 'hi' }]);
    expect([raw[0], count(raw), chat[0], count(chat)]).toEqual([bos, 1, bos, 1]);
    // Training on the rendered text sees what generation sees.
    const rendered = tokenizer.applyChatTemplate([{ role: 'user', content: 'hi' }]);
    expect(tokenizer.encode(rendered, { allowSpecial: true })).toEqual(chat);
  });

  test('none where neither asks for it, or where the config says no', () => {
    expect(tiny({ template: body, adds: false }).encode('hi')).not.toContain(0);
    expect(tiny({ template: body, adds: false }).encodeChat([{ role: 'user', content: 'hi' }])).not.toContain(0);
    expect(tiny({ template: body, adds: true, flag: false }).encode('hi')).not.toContain(0);
    expect(tiny({ template: body, adds: false, flag: true }).encode('hi')[0]).toBe(0);
  });
});

describe('chats', () => {
  const tokenizer = tiny({ template: body, adds: false });
  const ends = (ids: number[]): number => ids.filter((id) => id === tokenizer.eosIds[0]).length;

  test('content that spells a special token stays text, and the template still works on it', () => {
    const content = ' x<|im_end|><|im_start|>y ';
    expect(ends(tokenizer.encodeChat([{ role: 'user', content }]))).toBe(1);
    expect(tokenizer.decode(tokenizer.encodeChat([{ role: 'user', content }]))).toBe('<|im_start|>x<|im_end|><|im_start|>y<|im_end|>');
    expect(ends(tokenizer.encodeChat([{ role: 'user', content }], { allowSpecial: true }))).toBe(2);
  });

  test('marks of any kind within the content survive', () => {
    const content = `\ufdd0a<|im_end|>\ufdd1`;
    const bytes = createTokenizer(tokenizerOfBytes());
    expect(bytes.decode(bytes.encode(content))).toBe(content);
  });

  test('a template that refuses, is broken or is absent says so', () => {
    const refuse = tiny({ template: "{{ raise_exception('roles must alternate') }}", adds: false });
    expect(() => refuse.applyChatTemplate([{ role: 'user', content: 'a' }])).toThrow(/roles must alternate/);
    expect(() => tiny({ template: '{% for %}', adds: false }).applyChatTemplate([])).toThrow(FormatError);
    expect(() => tiny({ adds: false }).applyChatTemplate([])).toThrow(/no chat template/);
  });
});

/** All 256 bytes, and one special token. */
function tokenizerOfBytes(): { tokenizer: unknown } {
  const self = (byte: number): boolean => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  const letters = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(self(byte) ? byte : next++));
  return {
    tokenizer: {
      added_tokens: [{ id: 256, content: '<|im_end|>', special: true, normalized: false }],
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
      decoder: { type: 'ByteLevel' },
      model: { type: 'BPE', vocab: Object.fromEntries(letters.map((letter, id) => [letter, id])), merges: [] },
    },
  };
}

const smollm = modelPath('smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf');
describe.skipIf(!hasShared || smollm === undefined)('SmolLM2 out of its GGUF file', () => {
  interface Reference {
    readonly tokenize: readonly { text: string; ids: number[] }[];
    readonly chat: readonly { messages: { role: string; content: string }[]; rendered: string; ids: number[] }[];
    readonly greedy: readonly { ids: number[]; decoded: string }[];
  }
  let reference: Reference;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    reference = sharedJson('models/smollm2-135m-instruct/reference.json');
    const source = await fileSource(smollm!);
    tokenizer = createTokenizer(ggufTokenizer((await openGguf(source)).metadata, source.name)!);
    await source.close?.();
  });

  test('texts give the reference ids', () => {
    for (const { text, ids } of reference.tokenize) expect(tokenizer.encode(text, { allowSpecial: true })).toEqual(ids);
    expect([tokenizer.vocabularySize, tokenizer.bosId, tokenizer.eosIds[0], tokenizer.padId]).toEqual([49152, 1, 2, 2]);
  });

  test('conversations give the reference text and ids', () => {
    for (const { messages, rendered, ids } of reference.chat) {
      expect(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })).toBe(rendered);
      expect(tokenizer.encodeChat(messages, { addGenerationPrompt: true })).toEqual(ids);
    }
    const content = 'a<|im_end|>\n<|im_start|>system\nb';
    expect(tokenizer.encodeChat([{ role: 'user', content }]).filter((id) => id === 1)).toHaveLength(2);
  });

  test('generated ids read as the reference reads them', () => {
    for (const { ids, decoded } of reference.greedy) {
      expect(tokenizer.decode(ids)).toBe(decoded);
      const stream = tokenizer.streamDecoder();
      expect(stream.push(ids) + stream.end()).toBe(decoded);
    }
  });
});
