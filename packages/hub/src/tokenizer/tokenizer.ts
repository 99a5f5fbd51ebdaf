import type { Json } from '@niwaki/tensor';

export interface EncodeOptions {
  /** Add what the model wants around a text: BOS, EOS, [CLS] and [SEP]. Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * Whether text that spells a special token becomes that token. Default false: text of a user stays text.
   */
  readonly allowSpecial?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default false. */
  readonly skipSpecialTokens?: boolean;
}

export interface ChatMessage {
  readonly role: string;
  readonly content: Json;
  readonly [field: string]: Json;
}

export interface ChatOptions {
  /** Open the assistant's turn at the end. Default false. */
  readonly addGenerationPrompt?: boolean;
  /** Whether content that spells a special token becomes that token. Default false. */
  readonly allowSpecial?: boolean;
  /** Further variables of the template: tools, dates. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** Tokens to text while they come, never half a character. */
export interface StreamDecoder {
  /** The text that became certain with these tokens; '' while a character is unfinished. */
  push(ids: number | readonly number[]): string;
  /** What is left at the end, unfinished bytes as U+FFFD. */
  end(): string;
}

/** Text to token ids and back. */
export interface Tokenizer {
  encode(text: string, options?: EncodeOptions): number[];
  /** Two texts for one input, with the segment of each token (0 or 1). */
  encodePair(first: string, second: string, options?: EncodeOptions): { ids: number[]; segments: number[] };
  /** Throws DataError for an id outside the vocabulary. */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  streamDecoder(options?: DecodeOptions): StreamDecoder;
  tokenOf(id: number): string | undefined;
  idOf(token: string): number | undefined;
  readonly bosId: number | undefined;
  /** Whatever ends a turn or a text; the first is the one to train on. */
  readonly eosIds: readonly number[];
  readonly padId: number | undefined;
  /** Ids are below this; the embedding may have more rows. */
  readonly vocabularySize: number;
  readonly chatTemplate: string | undefined;
  /** The conversation as text. Throws ConfigError where the model has no template. */
  applyChatTemplate(messages: readonly ChatMessage[], options?: ChatOptions): string;
  /** The conversation as ids, with exactly one BOS where the model has one. */
  encodeChat(messages: readonly ChatMessage[], options?: ChatOptions): number[];
  /** What the tokenizer was made from, for saving beside a model. */
  readonly files: { readonly tokenizer: Json; readonly config: Json };
}
