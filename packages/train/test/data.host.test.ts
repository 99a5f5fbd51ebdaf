import { DataError } from '@niwaki/tensor';
import { describe, expect, it } from 'vitest';
import { epochOrder } from '../src/data/order.ts';
import { packSamples, rowOf } from '../src/data/pack.ts';
import { parseDocuments, parseJsonl, parseText } from '../src/data/document.ts';
import { decodeText } from '../src/data/decode-text.ts';
import type { Sample } from '../src/data/sample.ts';

const text = (ids: number[], kind: Sample['kind'] = 'text', learn = ids.map(() => 1)): Sample => ({
  ids: Int32Array.from(ids),
  learn: Uint8Array.from(learn),
  kind,
});
const plain = (rows: readonly { ids: Int32Array; targets: Int32Array; starts: Int32Array }[]): number[][][] =>
  rows.map(({ ids, targets, starts }) => [[...ids], [...targets], [...starts]]);

const errorOf = (run: () => unknown): unknown => {
  try {
    return run();
  } catch (error) {
    return error;
  }
};

describe('reading bytes', () => {
  const bytes = (...parts: readonly (string | number)[]): Uint8Array =>
    Uint8Array.from(parts.flatMap((part) => (typeof part === 'number' ? [part] : [...new TextEncoder().encode(part)])));

  it('gives the text, what spells U+FFFD itself and a byte-order mark included', () => {
    for (const text of ['', 'déjà vu 😀', 'a\uFFFDb', '\uFEFFa']) expect(decodeText(bytes(text))).toBe(text);
  });

  it.each([
    ['a byte of latin1', bytes('ab\nd', 0xe9, 'j'), 4, '0xe9', 2],
    ['a sequence that is cut off', bytes('é😀', 0xf0, 0x9f), 6, '0xf0', 1],
    ['a byte that begins nothing', bytes('\uFFFD\uFFFD', 0x80), 6, '0x80', 1],
    ['an overlong form', bytes('a', 0xc0, 0xaf), 1, '0xc0', 1],
    ['half a surrogate pair', bytes(0xed, 0xa0, 0x80), 0, '0xed', 1],
  ])('names the file and the place of %s', (_, given, offset, byte, line) => {
    const error = errorOf(() => decodeText(given, { name: 'notes.txt' })) as DataError;
    expect(error).toBeInstanceOf(DataError);
    expect(error.message).toMatch(`notes.txt is no UTF-8 text: byte ${offset} (${byte}, line ${line})`);
    expect(error.details).toMatchObject({ name: 'notes.txt', offset, line });
  });
});

describe('reading documents', () => {
  it('takes the three forms of a line, skips blank lines and counts lines from 1', () => {
    const lines = ['{"text":"a"}', '', '{"prompt":"p","completion":"c","id":7}', '{"messages":[{"role":"user","content":"u"}]}\r'];
    expect(parseJsonl(lines.join('\n'))).toEqual([
      { text: 'a', line: 1 },
      { prompt: 'p', completion: 'c', line: 3 },
      { messages: [{ role: 'user', content: 'u' }], line: 4 },
    ]);
  });

  it('drops a byte-order mark', () => {
    expect(parseJsonl('\uFEFF{"text":"a"}')).toEqual([{ text: 'a', line: 1 }]);
    expect(parseText('\uFEFFa')).toEqual([{ text: 'a' }]);
  });

  it.each([
    ['{"text":1}', /line 1: text: .*string.*1/i],
    ['{"text":"ok"}\n{"text":""}', /line 2: text: text must not be empty/],
    ['[1]', /line 1: expected an object, got an array/],
    ['null', /line 1: expected an object, got null/],
    ['{"text":', /line 1: not JSON/],
    ['{"body":"x"}', /line 1: no known field among: body/],
    ['{"prompt":"p"}', /line 1: completion: /],
    ['{"messages":[]}', /line 1: messages: messages must not be empty/],
    ['{"messages":[{"role":"user"}]}', /line 1: messages\.0\.content: /],
    ['{"messages":[{"role":"user","content":null}]}', /line 1: messages\.0\.content: /],
  ])('names the line and the field of %s', (content, message) => {
    expect(() => parseJsonl(content, { name: 'x.jsonl' })).toThrow(DataError);
    expect(() => parseJsonl(content, { name: 'x.jsonl' })).toThrow(message);
  });

  it('carries the numbers of every malformed line', () => {
    const error = errorOf(() => parseJsonl('x\n{"text":"fine"}\ny'));
    expect((error as DataError).details['lines']).toEqual([1, 3]);
  });

  it('refuses a file without a document', () => {
    expect(() => parseJsonl('\n \n')).toThrow(/holds no document/);
    expect(() => parseText(' \n')).toThrow(/holds no document\n {2}help: The text is empty/);
  });

  it('reads plain text as one document or one a paragraph', () => {
    expect(parseText('a\nb\n\nc')).toEqual([{ text: 'a\nb\n\nc' }]);
    expect(parseText('a\nb\n\n \n\nc\r\n\r\nd', { split: 'blank-line' })).toEqual([{ text: 'a\nb' }, { text: 'c' }, { text: 'd' }]);
    expect(parseDocuments('{"text":"a"}', { name: 'X.JSONL' })).toEqual([{ text: 'a', line: 1 }]);
    expect(parseDocuments('{"text":"a"}', { name: 'x.txt' })).toEqual([{ text: '{"text":"a"}' }]);
  });
});

describe('packing', () => {
  it('never predicts the first token of a document from the last of the one before', () => {
    expect(plain([rowOf([text([5, 6, 7]), text([8, 9])])])).toEqual([
      [
        [5, 6, 7, 8, 9],
        [6, 7, -1, 9, -1],
        [0, 0, 0, 3, 3],
      ],
    ]);
  });

  it('learns only what the sample says', () => {
    expect(plain([rowOf([text([1, 2, 3, 4], 'chat', [0, 0, 1, 0])])])).toEqual([
      [
        [1, 2, 3, 4],
        [-1, 3, -1, -1],
        [0, 0, 0, 0],
      ],
    ]);
  });

  it('splits plain text over rows and fills the room that is left', () => {
    const { rows, dropped } = packSamples([text([1, 2, 3, 4, 5, 6]), text([7, 8])], { context: 4 });
    expect(plain(rows)).toEqual([
      [
        [1, 2, 3, 4],
        [2, 3, 4, -1],
        [0, 0, 0, 0],
      ],
      [
        [5, 6, 7, 8],
        [6, -1, 8, -1],
        [0, 0, 2, 2],
      ],
    ]);
    expect(dropped).toBe(0);
  });

  it('puts a document where it leaves the least room', () => {
    const { rows } = packSamples([text([1, 1, 1]), text([2, 2, 2, 2]), text([3, 3])], { context: 6 });
    expect(rows.map(({ ids }) => [...ids])).toEqual([
      [1, 1, 1],
      [2, 2, 2, 2, 3, 3],
    ]);
  });

  it('keeps one document a row where packing is off', () => {
    const { rows } = packSamples([text([1, 2]), text([3, 4, 5])], { context: 8, pack: false });
    expect(rows.map(({ ids }) => [...ids])).toEqual([
      [1, 2],
      [3, 4, 5],
    ]);
  });

  it('refuses a chat longer than the context, unless it may be cut', () => {
    const chat = { ...text([1, 2, 3, 4], 'chat', [0, 0, 1, 1]), line: 9 };
    expect(() => packSamples([chat], { context: 3 })).toThrow(/line 9 has 4 tokens, the context is 3/);
    expect(plain(packSamples([chat], { context: 3, long: 'truncate' }).rows)).toEqual([
      [
        [1, 2, 3],
        [-1, 3, -1],
        [0, 0, 0],
      ],
    ]);
  });

  it('counts documents of which nothing is left to learn, and refuses when none is', () => {
    const cut = text([1, 2, 3, 4], 'chat', [0, 0, 0, 1]);
    expect(packSamples([cut, text([1, 2])], { context: 3, long: 'truncate' }).dropped).toBe(1);
    expect(() => packSamples([cut], { context: 3, long: 'truncate' })).toThrow(/none of the 1 documents/);
  });

  it('learns every token but the first of each document, whatever its id', () => {
    // Padding and end of text share the id 2 in many models: it is a target like any other.
    const { rows } = packSamples([text([5, 6, 2]), text([7, 2])], { context: 4, pack: false });
    expect(rows.map(({ targets }) => [...targets])).toEqual([
      [6, 2, -1],
      [2, -1],
    ]);
  });
});

describe('order of an epoch', () => {
  it('is a permutation, the same for the same seed and another for another epoch or seed', () => {
    const order = epochOrder(50, { seed: 3, epoch: 2 });
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(epochOrder(50, { seed: 3, epoch: 2 })).toEqual(order);
    expect(epochOrder(50, { seed: 3, epoch: 3 })).not.toEqual(order);
    expect(epochOrder(50, { seed: 4, epoch: 2 })).not.toEqual(order);
  });
});
