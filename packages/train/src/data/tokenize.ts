import { checkOptions, DataError } from '@niwaki/tensor';
import type { ChatMessage, Tokenizer } from '@niwaki/hub';
import type { Document } from './document.ts';
import { needTokenizer } from './need-tokenizer.ts';
import type { Sample } from './sample.ts';

export interface TokenizeOptions {
  /** Whether text that spells a special token becomes that token; default false: text of people stays text. */
  readonly allowSpecial?: boolean;
}

/**
 * Documents as token ids, with what is learned of each.
 * - text: everything, and the end of text.
 * - prompt and completion: the completion, and the end of text. The prompt's ids are those that generation starts from.
 * - messages: what the chat template writes for the assistant, up to the token that ends the turn.
 * There is one BOS at most, where the tokenizer wants one.
 * @param given as `load` gives it
 * @throws ConfigError where there is none; DataError naming the line, where the template writes earlier turns differently once later ones are there
 */
export function tokenizeDocuments(documents: readonly Document[], given: Tokenizer | undefined, options: TokenizeOptions = {}): Sample[] {
  checkOptions('tokenizeDocuments', options, ['allowSpecial']);
  const tokenizer = needTokenizer(given, 'tokenizeDocuments');
  return documents.map((document) => {
    const sample =
      'text' in document
        ? textSample(document.text, tokenizer, options)
        : 'prompt' in document
          ? completionSample(document, tokenizer, options)
          : chatSample(document, tokenizer, options);
    return document.line === undefined ? sample : { ...sample, line: document.line };
  });
}

function textSample(text: string, tokenizer: Tokenizer, options: TokenizeOptions): Sample {
  const ids = ended(tokenizer.encode(text, options), tokenizer);
  return sampleOf('text', ids, [[1, ids.length]]);
}

function completionSample(
  { prompt, completion }: { prompt: string; completion: string },
  tokenizer: Tokenizer,
  options: TokenizeOptions,
): Sample {
  const before = tokenizer.encode(prompt, options);
  const ending = tokenizer.eosIds[0];
  // A tokenizer that closes every text would close the prompt too.
  const start = before.length > 1 && before.at(-1) === ending ? before.slice(0, -1) : before;
  const whole = tokenizer.encode(prompt + completion, options);
  // Where a merge reaches over the boundary, the prompt keeps the ids that generation will see.
  const joined = startsWith(whole, start) ? whole : [...start, ...tokenizer.encode(completion, { ...options, addSpecialTokens: false })];
  const ids = ended(joined, tokenizer);
  return sampleOf('completion', ids, [[start.length, ids.length]]);
}

function chatSample({ messages, line }: Extract<Document, { messages: unknown }>, tokenizer: Tokenizer, options: TokenizeOptions): Sample {
  const turns = messages as unknown as readonly ChatMessage[];
  let ids = tokenizer.encodeChat(turns, options);
  const learned: [number, number][] = [];
  for (const [turn, { role }] of messages.entries()) {
    if (role !== 'assistant') continue;
    const before = tokenizer.encodeChat(turns.slice(0, turn), { ...options, addGenerationPrompt: true });
    const after = tokenizer.encodeChat(turns.slice(0, turn + 1), options);
    if (!startsWith(after, before) || !startsWith(ids, after)) {
      const where = line === undefined ? '' : `line ${line}: `;
      throw new DataError(`${where}the chat template writes the conversation up to turn ${turn + 1} differently once it goes on`, {
        line,
        turn,
        help: 'End the conversation after this turn, or use a template that only appends.',
      });
    }
    const stop = lastEnd(ids, before.length, after.length, tokenizer);
    learned.push([before.length, stop ?? after.length]);
    if (stop === undefined && turn === messages.length - 1) {
      ids = ended(ids, tokenizer);
      learned.push([after.length, ids.length]);
    }
  }
  return sampleOf('chat', ids, learned);
}

/** Ids with the end of text, once. */
function ended(ids: readonly number[], { eosIds }: Tokenizer): number[] {
  const [end] = eosIds;
  return end === undefined || ids.at(-1) === end ? [...ids] : [...ids, end];
}

/** Past the last end-of-turn token in [from, to): the white space that templates write after it is nothing to learn. */
function lastEnd(ids: readonly number[], from: number, to: number, { eosIds }: Tokenizer): number | undefined {
  for (let i = to - 1; i >= from; i--) if (eosIds.includes(ids[i]!)) return i + 1;
  return undefined;
}

const startsWith = (ids: readonly number[], prefix: readonly number[]): boolean => prefix.every((id, i) => ids[i] === id);

function sampleOf(kind: Sample['kind'], ids: readonly number[], learned: readonly (readonly [from: number, to: number])[]): Sample {
  const learn = new Uint8Array(ids.length);
  for (const [from, to] of learned) learn.fill(1, from, to);
  learn[0] = 0;
  return { kind, ids: Int32Array.from(ids), learn };
}
