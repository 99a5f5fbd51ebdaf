/** Takes a content in piece by piece; pieces keep their bounds, so that 'ab' and 'c' are not 'a' and 'bc'. */
export interface ContentHash {
  words(values: Int32Array): void;
  text(value: string): void;
  /** Of what came so far: 16 hex digits. */
  digest(): string;
}

/**
 * Names a content so that a resumed run notices other data, another model or another base: 64 bits. Not cryptographic: two
 * lanes of FNV-1a over 32-bit words. The same on every device.
 */
export function contentHash(): ContentHash {
  let a = 0x811c9dc5;
  let b = 0x9747b28c;
  const word = (value: number): void => {
    a = Math.imul(a ^ value, 0x01000193);
    a ^= a >>> 15;
    b = Math.imul(b ^ value, 0x85ebca6b);
    b ^= b >>> 13;
  };
  return {
    words: (values) => {
      word(values.length);
      for (const value of values) word(value);
    },
    text: (value) => {
      const bytes = new TextEncoder().encode(value);
      word(bytes.length);
      for (const byte of bytes) word(byte);
    },
    digest: () => [a, b].map((lane) => (lane >>> 0).toString(16).padStart(8, '0')).join(''),
  };
}
