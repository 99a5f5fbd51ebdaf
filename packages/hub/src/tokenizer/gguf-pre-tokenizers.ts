import type { Json } from '@niwaki/tensor';

export interface PreTokenizer {
  /** tokenizer.json's `pre_tokenizer`. */
  readonly steps: Json;
  readonly normalizer?: Json;
  /** A whole piece that is in the vocabulary is taken as it is. */
  readonly ignoreMerges?: boolean;
  /** BOS goes first where the file does not say. */
  readonly bos?: boolean;
}

const split = (regex: string): Json => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false });
const bytes = ({ regex }: { regex: boolean }): Json => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: regex,
});
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers });

const words = (numbers: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${numbers}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

const gpt2: PreTokenizer = { steps: bytes({ regex: true }) };
const digitsAlone: PreTokenizer = { steps: sequence(split('\\p{N}'), bytes({ regex: true })) };
const llama3: PreTokenizer = { steps: sequence(split(words('\\p{N}{1,3}')), bytes({ regex: false })), ignoreMerges: true, bos: true };
const qwen2: PreTokenizer = { steps: sequence(split(words('\\p{N}')), bytes({ regex: false })), normalizer: { type: 'NFC' } };
// What llama.cpp does with files that do not name their pre-tokenizer.
const unnamed: PreTokenizer = {
  steps: sequence(
    split('[\\p{P}\\$\\+<=>\\^~\\|]+'),
    split("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"),
    split('\\p{N}+'),
    split('[0-9][0-9][0-9]'),
    bytes({ regex: false }),
  ),
};

/** By the name in `tokenizer.ggml.pre`. */
export const preTokenizers: ReadonlyMap<string, PreTokenizer> = new Map([
  ['default', unnamed],
  ['gpt-2', gpt2],
  ['smollm', digitsAlone],
  ['starcoder', digitsAlone],
  ['refact', digitsAlone],
  ['command-r', digitsAlone],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['falcon3', llama3],
  ['qwen2', qwen2],
  ['deepseek-r1-qwen', qwen2],
]);
