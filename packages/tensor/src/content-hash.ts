/**
 * Names a content so that a resumed run notices other data or another model: 64 bits, as 16 hex digits. Not
 * cryptographic: two lanes of FNV-1a over 32-bit words.
 */
export interface ContentHash {
  words(values: Int32Array): void;
  text(value: string): void;
  digest(): string;
}

export function createHash(): ContentHash {
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
