import { FormatError, type Json } from '@niwaki/tensor';
import * as v from 'valibot';
import { validate } from '../json.ts';

/** The parts of a tokenizer.json that we look into; the rest is the library's. */
export interface TokenizerJson {
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: Json;
  readonly pre_tokenizer: Json;
  readonly post_processor: Json;
  readonly decoder: Json;
  readonly model: { readonly type?: string; readonly [field: string]: Json | undefined };
  readonly [field: string]: unknown;
}

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly single_word?: boolean;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  readonly normalized?: boolean;
}

const tokenId = v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(2 ** 31 - 1));
const tokenizerSchema = v.looseObject({
  added_tokens: v.optional(v.array(v.looseObject({ id: tokenId, content: v.string(), special: v.optional(v.boolean(), false) })), []),
  normalizer: v.optional(v.unknown(), null),
  pre_tokenizer: v.optional(v.unknown(), null),
  post_processor: v.optional(v.unknown(), null),
  decoder: v.optional(v.unknown(), null),
  model: v.looseObject({ type: v.optional(v.string()) }),
});

const token = v.nullish(
  v.union([
    v.string(),
    v.pipe(
      v.looseObject({ content: v.string() }),
      v.transform(({ content }) => content),
    ),
  ]),
);
const configSchema = v.looseObject({
  bos_token: token,
  eos_token: token,
  pad_token: token,
  unk_token: token,
  cls_token: token,
  sep_token: token,
  mask_token: token,
  add_bos_token: v.nullish(v.boolean()),
  add_eos_token: v.nullish(v.boolean()),
  additional_special_tokens: v.nullish(
    v.array(
      v.pipe(
        token,
        v.transform((text) => text ?? ''),
      ),
    ),
  ),
  chat_template: v.nullish(v.union([v.string(), v.array(v.looseObject({ name: v.string(), template: v.string() }))])),
});

type Token = string | null | undefined;
/** The parts of a tokenizer_config.json that we look into; tokens as text, whichever way they were spelled. */
export interface TokenizerConfig {
  readonly bos_token?: Token;
  readonly eos_token?: Token;
  readonly pad_token?: Token;
  readonly unk_token?: Token;
  readonly cls_token?: Token;
  readonly sep_token?: Token;
  readonly mask_token?: Token;
  readonly add_bos_token?: boolean | null | undefined;
  readonly add_eos_token?: boolean | null | undefined;
  readonly additional_special_tokens?: readonly string[] | null | undefined;
  readonly chat_template?: string | readonly { readonly name: string; readonly template: string }[] | null | undefined;
  readonly [field: string]: unknown;
}

const generationSchema = v.looseObject({ eos_token_id: v.nullish(v.union([tokenId, v.array(tokenId)])) });

export const parseTokenizerJson = (json: unknown): TokenizerJson => validate(tokenizerSchema, json, 'tokenizer.json') as TokenizerJson;
export const parseTokenizerConfig = (json: unknown): TokenizerConfig => validate(configSchema, json, 'tokenizer_config.json');

/** Ids that end a generation, out of generation_config.json or config.json. */
export function parseEosIds(json: unknown, file: string): readonly number[] {
  const ids = validate(generationSchema, json, file).eos_token_id;
  return ids === null || ids === undefined ? [] : [ids].flat();
}

/** The one template, or the one named `default`. Throws FormatError where there are several and none of that name. */
export function templateOf(config: TokenizerConfig): string | undefined {
  const { chat_template: given } = config;
  if (given === null || given === undefined) return undefined;
  if (typeof given === 'string') return given;
  const found = given.find(({ name }) => name === 'default') ?? (given.length === 1 ? given[0] : undefined);
  if (found === undefined && given.length > 0) {
    throw new FormatError('tokenizer_config.json has several chat templates and none is the default', {
      names: given.map(({ name }) => name),
    });
  }
  return found?.template;
}
