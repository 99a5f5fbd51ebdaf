// Trains the byte-level BPE tokenizer of niwaki-tiny on the training speeches and writes it in Hugging Face's format.
//   node train-tokenizer.mjs [vocabularySize=2048] [outFolder]
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { training } from './corpus.mjs';

const vocabularySize = Number(process.argv[2] ?? 2048);
const out = process.argv[3] ?? new URL('../../packages/niwaki/models/niwaki-tiny/', import.meta.url).pathname;
const endOfText = '<|endoftext|>';

// The words of GPT-2: merges never cross their borders.
const words = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

// Every byte as one printable character: printable ones stand for themselves, the rest move behind U+0100.
const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
const characterOf = [];
for (let byte = 0, moved = 0; byte < 256; byte++) characterOf.push(String.fromCodePoint(printable(byte) ? byte : 256 + moved++));

const counts = new Map();
for (const text of training) for (const [word] of text.matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1);
const vocabulary = [endOfText, ...characterOf];
const encoder = new TextEncoder();
const pieces = [...counts].map(([word, count]) => ({ count, symbols: Array.from(encoder.encode(word), (byte) => characterOf[byte]) }));

const pairs = new Map(); // 'left right' -> { count, where: the words it occurs in }
const change = (index, by) => {
  const { count, symbols } = pieces[index];
  for (let i = 0; i + 1 < symbols.length; i++) {
    const key = `${symbols[i]} ${symbols[i + 1]}`;
    const pair = pairs.get(key) ?? { count: 0, where: new Set() };
    pair.count += by * count;
    pair.where.add(index);
    pairs.set(key, pair);
  }
};
pieces.forEach((_, index) => change(index, 1));

const merges = [];
while (vocabulary.length < vocabularySize) {
  let best;
  for (const [key, { count }] of pairs)
    if (count > 0 && (best === undefined || count > best.count || (count === best.count && key < best.key))) best = { key, count };
  if (best === undefined) break;
  const [left, right] = best.key.split(' ');
  const { where } = pairs.get(best.key);
  for (const index of where) {
    change(index, -1);
    const { symbols } = pieces[index];
    for (let i = 0; i + 1 < symbols.length; i++) if (symbols[i] === left && symbols[i + 1] === right) symbols.splice(i, 2, left + right);
    change(index, 1);
  }
  pairs.delete(best.key);
  merges.push([left, right]);
  vocabulary.push(left + right);
}

const special = { id: 0, content: endOfText, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
const tokenizer = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: [special],
  normalizer: null,
  pre_tokenizer: byteLevel,
  post_processor: null,
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
    vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
    merges,
  },
};
const config = {
  tokenizer_class: 'PreTrainedTokenizerFast',
  eos_token: endOfText,
  model_max_length: 512,
  clean_up_tokenization_spaces: false,
};
mkdirSync(out, { recursive: true });
writeFileSync(join(out, 'tokenizer.json'), `${JSON.stringify(tokenizer)}\n`);
writeFileSync(join(out, 'tokenizer_config.json'), `${JSON.stringify(config, undefined, 2)}\n`);
console.log(`${vocabulary.length} tokens, ${merges.length} merges, from ${counts.size} distinct words`);
