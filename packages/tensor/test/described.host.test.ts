import { describe, expect, it } from 'vitest';
import { contentHash, descriptionOf } from '../src/index.ts';

const hashOf = (...pieces: readonly (string | readonly number[])[]): string => {
  const hash = contentHash();
  for (const piece of pieces)
    if (typeof piece === 'string') hash.text(piece);
    else hash.words(Int32Array.from(piece));
  return hash.digest();
};

describe('a content hash', () => {
  it('is the same for the same content, and another for another order, bound, sign or length', () => {
    const others = [
      ['a', 'bc'],
      ['ab', 'c'],
      ['abc'],
      ['c', 'ab'],
      [[1, 2], [3]],
      [[1], [2, 3]],
      [[1, 2, 3]],
      [[-1, 2, 3]],
      [[]],
      [[], []],
      [],
    ];
    expect(others.map((content) => hashOf(...content))).toEqual(others.map((content) => hashOf(...content)));
    const digests = new Set(others.map((content) => hashOf(...content)));
    expect(digests.size).toBe(others.length);
    for (const digest of digests) expect(digest).toMatch(/^[0-9a-f]{16}$/);
  });

  it('meets no other among many that differ in one bit', () => {
    const digests = new Set(Array.from({ length: 4096 }, (_, i) => hashOf([i & 63, 1 << (i >> 7), i])));
    expect(digests.size).toBe(4096);
  });
});

describe('a description', () => {
  it('is plain JSON: of a value with toJSON what that says, of a function its name', () => {
    const told = Object.assign(() => 1, { toJSON: () => ({ otherwise: 1 }) });
    expect(descriptionOf({ name: 'a', options: { told, plain: Math.max, none: undefined, list: [1, Infinity] } })).toEqual({
      kind: 'a',
      told: { otherwise: 1 },
      plain: 'function max',
      list: [1, 'Infinity'],
    });
    expect(descriptionOf({ name: 'b' })).toEqual({ kind: 'b' });
  });
});
