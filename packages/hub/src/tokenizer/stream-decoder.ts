import type { StreamDecoder } from './tokenizer.ts';

/**
 * Decodes a growing list of ids. A window of two emissions is decoded each time, since what a token reads as may depend
 * on the one before (spaces, continuations); text that ends in U+FFFD waits for the bytes that complete it.
 */
export function createStreamDecoder(decode: (ids: readonly number[]) => string): StreamDecoder {
  let window: number[] = [];
  let emitted = 0; // ids of the window whose text is out
  const certain = ({ last }: { last: boolean }): string => {
    if (window.length === emitted) return '';
    const before = emitted === 0 ? '' : decode(window.slice(0, emitted));
    const now = decode(window);
    if (!last && now.endsWith('\ufffd')) return '';
    const text = now.slice(before.length);
    window = window.slice(emitted);
    emitted = window.length;
    return text;
  };
  return {
    push: (ids) => {
      let text = '';
      for (const id of typeof ids === 'number' ? [ids] : ids) {
        window.push(id);
        text += certain({ last: false });
      }
      return text;
    },
    end: () => certain({ last: true }),
  };
}
