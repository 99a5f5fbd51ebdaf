import { createTokenizer, type Tokenizer } from '@niwaki/hub';

const specials = ['<|im_start|>', '<|im_end|>', '<s>'] as const;

/** Ids of the byte tokenizer's special tokens. */
export const byteSpecials = { imStart: 256, imEnd: 257, bos: 258 } as const;
/** Ids are below this. */
export const byteVocabularySize = 259;

/** ChatML, as SmolLM2 and Qwen write it. */
export const chatMl: string =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

export interface ByteTokenizerOptions {
  /** Whether the post-processor puts a BOS before every text. */
  readonly addsBos?: boolean;
  readonly chatTemplate?: string;
}

/** A tokenizer whose tokens are the bytes: ids of ASCII text are its character codes, counted by hand. */
export function byteTokenizer({ addsBos = false, chatTemplate = chatMl }: ByteTokenizerOptions = {}): Tokenizer {
  const vocab: Record<string, number> = {};
  let extra = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    vocab[String.fromCharCode(printable ? byte : extra++)] = byte;
  }
  const added = specials.map((content, i) => ({
    id: 256 + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  for (const { content, id } of added) vocab[content] = id;
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const withBos = {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
    special_tokens: { '<s>': { id: '<s>', ids: [byteSpecials.bos], tokens: ['<s>'] } },
  };
  return createTokenizer({
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: addsBos ? withBos : null,
      decoder: byteLevel,
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab,
        merges: [],
      },
    },
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      bos_token: '<s>',
      eos_token: '<|im_end|>',
      pad_token: '<|im_end|>',
      chat_template: chatTemplate,
    },
  });
}
