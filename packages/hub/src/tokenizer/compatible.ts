import type { Json } from '@niwaki/tensor';
import type { TokenizerJson } from './files.ts';

/**
 * A tokenizer.json that the JavaScript library reads as the Rust one reads the original. Two parts differ between them:
 * `Digits` (every numeric character there, ASCII digits here), and Unigram vocabularies, through which plain text could
 * reach special tokens past the splitter.
 */
export function compatibleTokenizer(json: TokenizerJson): TokenizerJson {
  return { ...json, pre_tokenizer: unicodeDigits(json.pre_tokenizer), model: unreachableSpecials(json) };
}

type Fields = { readonly [field: string]: Json };
const isFields = (value: Json | undefined): value is Fields => typeof value === 'object' && value !== null && !Array.isArray(value);

function unicodeDigits(pre: Json): Json {
  if (!isFields(pre)) return pre;
  if (pre['type'] === 'Digits') {
    const pattern = { Regex: pre['individual_digits'] === true ? '\\p{N}' : '\\p{N}+' };
    return { type: 'Split', pattern, behavior: 'Isolated', invert: false };
  }
  const inner = pre['pretokenizers'];
  return Array.isArray(inner) ? { ...pre, pretokenizers: inner.map((one: Json) => unicodeDigits(one)) } : pre;
}

function unreachableSpecials({ model, added_tokens: added }: TokenizerJson): TokenizerJson['model'] {
  const { vocab } = model;
  if (!Array.isArray(vocab)) return model;
  const specials = new Set(added.filter(({ special }) => special).map(({ id }) => id));
  specials.delete(model['unk_id'] as number);
  // A piece never holds a space: it was replaced before.
  return {
    ...model,
    vocab: vocab.map((entry: Json, id) => (specials.has(id) && Array.isArray(entry) ? [`special ${id}`, entry[1] as Json] : entry)),
  };
}
