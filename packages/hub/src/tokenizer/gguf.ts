import { FormatError, type Json } from '@niwaki/tensor';
import type { GgufMetadata } from '../gguf/metadata.ts';
import type { TokenizerParts } from './create.ts';
import { preTokenizers } from './gguf-pre-tokenizers.ts';
import { mergesOfScores } from './sentencepiece.ts';

/** Kinds of token in the file. */
const kinds = { normal: 1, unknown: 2, control: 3, user: 4, unused: 5, byte: 6 } as const;

/** Names under which chat models end their turn, where the file does not say so itself. */
const endOfTurn = ['<|im_end|>', '<|eot_id|>', '<|end|>', '<end_of_turn>', '<|endoftext|>'];

interface Vocabulary {
  readonly file: string;
  readonly metadata: GgufMetadata;
  readonly tokens: readonly string[];
  readonly kinds: readonly number[] | undefined;
}

/**
 * The tokenizer in a GGUF file's metadata as the tokenizer.json and tokenizer_config.json that say the same, or undefined
 * where the file has none. Reads byte-level BPE (`gpt2`, with a known `pre`) and SentencePiece BPE (`llama`).
 * Throws FormatError naming what is not read.
 */
export function ggufTokenizer(metadata: GgufMetadata, file: string): TokenizerParts | undefined {
  const model = metadata.text('tokenizer.ggml.model');
  const tokens = metadata.texts('tokenizer.ggml.tokens');
  if (model === undefined || model === 'no_vocab') return undefined;
  if (tokens === undefined) throw new FormatError(`${file}: metadata 'tokenizer.ggml.tokens' is missing`, { file });
  const types = metadata.numbers('tokenizer.ggml.token_type');
  if (types !== undefined && types.length !== tokens.length) {
    throw new FormatError(`${file}: ${tokens.length} tokens and ${types.length} token types`, {
      file,
      tokens: tokens.length,
      types: types.length,
    });
  }
  const vocabulary: Vocabulary = { file, metadata, tokens, kinds: types };
  if (model === 'gpt2')
    return parts(vocabulary, byteLevel(vocabulary), { bos: preTokenizers.get(metadata.text('tokenizer.ggml.pre') ?? '')?.bos ?? false });
  if (model === 'llama') return parts(vocabulary, sentencePiece(vocabulary), { bos: true });
  throw new FormatError(`${file}: the tokenizer model '${model}' is not read from GGUF`, {
    file,
    model,
    help: 'Known: gpt2 (byte-level BPE) and llama (SentencePiece BPE). Pass the tokenizer.json of the original model instead.',
  });
}

type Pieces = { readonly [part in 'normalizer' | 'pre_tokenizer' | 'decoder' | 'model']: Json };

function byteLevel(vocabulary: Vocabulary): Pieces {
  const { file, metadata } = vocabulary;
  const pre = metadata.text('tokenizer.ggml.pre') ?? 'default';
  const known = preTokenizers.get(pre);
  if (known === undefined) {
    throw new FormatError(`${file}: the pre-tokenizer '${pre}' is not read`, {
      file,
      pre,
      known: [...preTokenizers.keys()],
      help: `Known: ${[...preTokenizers.keys()].join(', ')}. Pass the tokenizer.json of the original model instead.`,
    });
  }
  const merges = metadata.texts('tokenizer.ggml.merges');
  if (merges === undefined) throw new FormatError(`${file}: metadata 'tokenizer.ggml.merges' is missing`, { file });
  const pairs = merges.map((merge) => {
    // A space within a token is spelled otherwise; at the first position it would be an empty left side.
    const space = merge.indexOf(' ', 1);
    if (space < 0) throw new FormatError(`${file}: the merge ${JSON.stringify(merge)} is not two tokens`, { file, merge });
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
  return {
    normalizer: known.normalizer ?? null,
    pre_tokenizer: known.steps,
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    model: {
      type: 'BPE',
      unk_token: null,
      byte_fallback: false,
      ignore_merges: known.ignoreMerges ?? false,
      vocab: plainTokens(vocabulary),
      merges: pairs,
    },
  };
}

function sentencePiece(vocabulary: Vocabulary): Pieces {
  const { file, metadata, tokens } = vocabulary;
  const scores = metadata.numbers('tokenizer.ggml.scores');
  if (scores?.length !== tokens.length)
    throw new FormatError(`${file}: ${tokens.length} tokens and ${scores?.length ?? 'no'} scores`, { file });
  const prepend = metadata.flag('tokenizer.ggml.add_space_prefix') ?? true;
  const unknown = metadata.number('tokenizer.ggml.unknown_token_id') ?? 0;
  const spaces = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  return {
    normalizer: prepend ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, spaces] } : spaces,
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prepend ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      unk_token: tokens[unknown] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      vocab: { ...plainTokens(vocabulary), ...(tokens[unknown] === undefined ? {} : { [tokens[unknown]]: unknown }) },
      merges: mergesOfScores(tokens, scores, (id) => kindOf(vocabulary, id) === kinds.normal || kindOf(vocabulary, id) === kinds.user),
    },
  };
}

const kindOf = ({ kinds: types }: Vocabulary, id: number): number => types?.[id] ?? kinds.normal;
const isSpecial = (kind: number): boolean => kind === kinds.control || kind === kinds.unknown;

/** Tokens that plain text may become. */
function plainTokens(vocabulary: Vocabulary): { readonly [token: string]: number } {
  const plain: Record<string, number> = Object.create(null) as Record<string, number>;
  vocabulary.tokens.forEach((text, id) => {
    if (!isSpecial(kindOf(vocabulary, id))) plain[text] ??= id;
  });
  return plain;
}

function parts(vocabulary: Vocabulary, pieces: Pieces, fallback: { bos: boolean }): TokenizerParts {
  const { metadata, tokens, file } = vocabulary;
  const tokenAt = (key: string): { id: number; text: string } | undefined => {
    const id = metadata.number(`tokenizer.ggml.${key}_token_id`);
    if (id === undefined) return undefined;
    const text = tokens[id];
    if (text === undefined)
      throw new FormatError(`${file}: ${key}_token_id ${id} is outside the vocabulary of ${tokens.length}`, { file, key, id });
    return { id, text };
  };
  const [bos, eos] = [tokenAt('bos'), tokenAt('eos')];
  const added = tokens.flatMap((content, id) => {
    const kind = kindOf(vocabulary, id);
    const isAdded = isSpecial(kind) || kind === kinds.user;
    return isAdded ? [{ id, content, special: isSpecial(kind), single_word: false, lstrip: false, rstrip: false, normalized: false }] : [];
  });
  const named = added.filter(({ content, special }) => special && endOfTurn.includes(content)).map(({ id }) => id);
  const ends = [eos?.id, tokenAt('eot')?.id, tokenAt('eom')?.id, ...named].filter((id) => id !== undefined);
  const template = metadata.text('tokenizer.chat_template');
  return {
    tokenizer: {
      version: '1.0',
      added_tokens: added,
      ...pieces,
      post_processor: postProcessor({
        before: (metadata.flag('tokenizer.ggml.add_bos_token') ?? fallback.bos) ? bos : undefined,
        after: metadata.flag('tokenizer.ggml.add_eos_token') ? eos : undefined,
      }),
    },
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      bos_token: bos?.text ?? null,
      eos_token: eos?.text ?? null,
      unk_token: tokenAt('unknown')?.text ?? null,
      pad_token: tokenAt('padding')?.text ?? null,
      add_bos_token: metadata.flag('tokenizer.ggml.add_bos_token') ?? (fallback.bos && bos !== undefined),
      ...(template === undefined ? {} : { chat_template: template }),
    },
    eosIds: ends,
  };
}

interface Framing {
  readonly before: { id: number; text: string } | undefined;
  readonly after: { id: number; text: string } | undefined;
}

function postProcessor({ before, after }: Framing): Json {
  if (before === undefined && after === undefined) return null;
  const special = (one: Framing['before']): Json[] => (one ? [{ SpecialToken: { id: one.text, type_id: 0 } }] : []);
  const sequence = (id: string): Json => ({ Sequence: { id, type_id: 0 } });
  return {
    type: 'TemplateProcessing',
    single: [...special(before), sequence('A'), ...special(after)],
    pair: [...special(before), sequence('A'), ...special(after), ...special(before), sequence('B'), ...special(after)],
    special_tokens: Object.fromEntries(
      [before, after].flatMap((one) => (one ? [[one.text, { id: one.text, ids: [one.id], tokens: [one.text] }]] : [])),
    ),
  };
}
