/**
 * Keeps text from being read as special tokens: every spelling of one gets marks inside, so the splitter does not find
 * it, and the marks are taken out before the model sees the piece. Splits and merges stay what they are for plain text.
 */
export interface Guard {
  /** The text with marks in every special token it spells. */
  hide(text: string): string;
  /** The text as it was. */
  reveal(text: string): string;
}

/** Noncharacters: no part of interchanged text, and no normalizer touches them. */
const marks = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i));

/** @param texts everything that will be hidden: the mark is one they do not hold */
export function createGuard(specials: RegExp | undefined, texts: readonly string[]): Guard | undefined {
  if (specials === undefined || !texts.some((text) => text.search(specials) >= 0)) return undefined;
  const mark = marks.find((candidate) => texts.every((text) => !text.includes(candidate))) ?? marks.join('');
  // After every character, the last too: nothing can match within, nor from within into what follows.
  const marked = (special: string): string => Array.from(special, (character) => character + mark).join('');
  return { hide: (text) => text.replace(specials, marked), reveal: (text) => text.replaceAll(mark, '') };
}

/** Matches any of the texts, the longest first; undefined where there are none. */
export function anyOf(texts: readonly string[]): RegExp | undefined {
  const ordered = texts.filter((text) => text.length > 0).sort((a, b) => b.length - a.length);
  return ordered.length === 0 ? undefined : new RegExp(ordered.map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|'), 'g');
}
