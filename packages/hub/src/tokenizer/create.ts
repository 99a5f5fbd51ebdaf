import { Tokenizer as Library } from '@huggingface/tokenizers';
import { DataError, FormatError, type Json } from '@niwaki/tensor';
import { chatRenderer } from './chat-template.ts';
import { compatibleTokenizer } from './compatible.ts';
import { parseTokenizerConfig, parseTokenizerJson, templateOf, type TokenizerConfig, type TokenizerJson } from './files.ts';
import { anyOf, createGuard, type Guard } from './guard.ts';
import { createStreamDecoder } from './stream-decoder.ts';
import type { ChatMessage, ChatOptions, DecodeOptions, EncodeOptions, Tokenizer } from './tokenizer.ts';

export interface TokenizerParts {
  /** Contents of tokenizer.json. */
  readonly tokenizer: unknown;
  /** Contents of tokenizer_config.json. */
  readonly config?: unknown;
  /** Ids that end a generation, from generation_config.json; the tokenizer's own EOS is added. */
  readonly eosIds?: readonly number[];
  /** Contents of chat_template.jinja, which goes before the config's. */
  readonly chatTemplate?: string | undefined;
}

/** A tokenizer from the contents of its files. Throws FormatError for what is damaged or uses parts that are not read. */
export function createTokenizer(parts: TokenizerParts): Tokenizer {
  const json = parseTokenizerJson(parts.tokenizer);
  const config = parseTokenizerConfig(parts.config ?? {});
  const { library, guarded } = openLibrary(json, config);
  const idOf = (token: string | null | undefined): number | undefined => (token ? library.token_to_id(token) : undefined);
  const specials = [
    ...json.added_tokens.filter(({ special }) => special).map(({ content }) => content),
    ...(config.additional_special_tokens ?? []),
  ];
  const specialPattern = anyOf(specials);
  const specialIds = new Set(specials.map((content) => library.token_to_id(content)));
  const vocabularySize = library.model?.vocab.length ?? 0;

  const [bosId, eosId] = [idOf(config.bos_token), idOf(config.eos_token)];
  const chatTemplate = parts.chatTemplate ?? templateOf(config);
  const render = chatRenderer(chatTemplate);
  const adds = library.encode('a', { add_special_tokens: true }).ids;
  const wantsBos = bosId !== undefined && (config.add_bos_token ?? (adds[0] === bosId || /\bbos_token\b/.test(chatTemplate ?? '')));
  const wantsEos = eosId !== undefined && config.add_eos_token === true && adds.at(-1) !== eosId;

  const raw = (text: string, addSpecialTokens: boolean, guard?: Guard): number[] =>
    guarded(guard, () => library.encode(text, { add_special_tokens: addSpecialTokens }).ids);
  const oneBos = (ids: readonly number[]): number[] => {
    if (bosId === undefined || (!wantsBos && adds[0] !== bosId)) return [...ids];
    const first = ids.findIndex((id) => id !== bosId);
    const rest = ids.slice(first < 0 ? ids.length : first);
    return wantsBos ? [bosId, ...rest] : rest;
  };

  const encode = (text: string, { addSpecialTokens = true, allowSpecial = false }: EncodeOptions = {}): number[] => {
    const guard = allowSpecial ? undefined : createGuard(specialPattern, [text]);
    const ids = raw(guard ? guard.hide(text) : text, addSpecialTokens, guard);
    if (!addSpecialTokens) return ids;
    return wantsEos ? [...oneBos(ids), eosId!] : oneBos(ids);
  };

  const decode = (ids: readonly number[], { skipSpecialTokens = false }: DecodeOptions = {}): string => {
    const known: number[] = [];
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0)
        throw new DataError(`${id} is no token id`, { id, help: 'Labels of -100 are not tokens: leave them out.' });
      // Rows that pad the embedding have no text, as in the reference.
      if (library.id_to_token(id) !== undefined && !(skipSpecialTokens && specialIds.has(id))) known.push(id);
    }
    return known.length === 0 ? '' : library.decode(known, { clean_up_tokenization_spaces: false });
  };

  const renderChat = (
    messages: readonly ChatMessage[],
    { addGenerationPrompt = false, variables = {} }: ChatOptions,
    guard?: Guard,
  ): string => {
    const tokens = Object.fromEntries(tokenFields.map((field) => [field, config[field] ?? '']));
    const given = guard ? (mapText(messages as unknown as Json, guard.hide) as unknown as readonly ChatMessage[]) : messages;
    return render(given, { ...tokens, ...variables, add_generation_prompt: addGenerationPrompt });
  };

  return {
    encode,
    encodePair: (first, second, options = {}) => {
      const { addSpecialTokens = true, allowSpecial = false } = options;
      const type = postProcessorType(json.post_processor);
      if (type === undefined || type === 'ByteLevel') {
        const [a, b] = [encode(first, options), encode(second, { ...options, addSpecialTokens: false })];
        return { ids: [...a, ...b], segments: [...a.map(() => 0), ...b.map(() => 1)] };
      }
      const guard = allowSpecial ? undefined : createGuard(specialPattern, [first, second]);
      const [a, b] = guard ? [guard.hide(first), guard.hide(second)] : [first, second];
      const { ids, token_type_ids: segments } = guarded(guard, () =>
        library.encode(a, { text_pair: b, add_special_tokens: addSpecialTokens, return_token_type_ids: true }),
      );
      // RoBERTa has one row of segments: its second text is in the first one too.
      return { ids, segments: type === 'RobertaProcessing' ? ids.map(() => 0) : segments };
    },
    decode,
    streamDecoder: (options = {}) => createStreamDecoder((ids) => decode(ids, options)),
    tokenOf: (id) => library.id_to_token(id),
    idOf,
    bosId,
    eosIds: [...new Set([...(parts.eosIds ?? []), ...(eosId === undefined ? [] : [eosId])])],
    padId: idOf(config.pad_token),
    vocabularySize,
    chatTemplate,
    applyChatTemplate: (messages, options = {}) => renderChat(messages, options),
    encodeChat: (messages, options = {}) => {
      const guard = options.allowSpecial ? undefined : createGuard(specialPattern, textsOf(messages as unknown as Json));
      const ids = raw(renderChat(messages, options, guard), false, guard);
      return wantsBos ? oneBos(ids) : ids;
    },
    files: {
      tokenizer: parts.tokenizer as Json,
      config: {
        ...(parts.config as { readonly [field: string]: Json } | undefined),
        ...(chatTemplate === undefined ? {} : { chat_template: chatTemplate }),
      },
    },
  };
}

const tokenFields = ['bos_token', 'eos_token', 'pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token'] as const;

interface OpenLibrary {
  readonly library: Library;
  /** Runs an encoding whose hidden text is revealed behind the splitter, before the model. */
  guarded<T>(guard: Guard | undefined, run: () => T): T;
}

function openLibrary(json: TokenizerJson, config: TokenizerConfig): OpenLibrary {
  let library: Library;
  try {
    library = new Library(compatibleTokenizer(json), config);
  } catch (cause) {
    throw new FormatError(`tokenizer.json cannot be used: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  let active: Guard | undefined;
  type Split = NonNullable<Library['pre_tokenizer']>;
  const split = library.pre_tokenizer as ((text: string, options: unknown) => string[]) | null;
  library.pre_tokenizer = ((text: string, options: unknown) => {
    const plain = active ? active.reveal(text) : text;
    return split === null ? [plain] : split(plain, options);
  }) as unknown as Split;
  return {
    library,
    guarded: (guard, run) => {
      active = guard;
      try {
        return run();
      } finally {
        active = undefined;
      }
    },
  };
}

const postProcessorType = (post: Json): string | undefined =>
  typeof post === 'object' && post !== null && 'type' in post && typeof post.type === 'string' ? post.type : undefined;

/** Every text within a JSON value, keys left out. */
function textsOf(value: Json): string[] {
  if (typeof value === 'string') return [value];
  return typeof value === 'object' && value !== null ? Object.values(value).flatMap((inner) => textsOf(inner as Json)) : [];
}

function mapText(value: Json, change: (text: string) => string): Json {
  if (typeof value === 'string') return change(value);
  if (Array.isArray(value)) return value.map((inner: Json) => mapText(inner, change));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, mapText(inner as Json, change)]));
}
