import { FormatError } from '@niwaki/tensor';
import type { GgufScalar, GgufValue } from './types.ts';

/** Typed reading of GGUF metadata: absent is undefined, a wrong type is an error that names the key. */
export interface GgufMetadata {
  has(key: string): boolean;
  number(key: string): number | undefined;
  text(key: string): string | undefined;
  flag(key: string): boolean | undefined;
  texts(key: string): readonly string[] | undefined;
  numbers(key: string): readonly number[] | undefined;
  /** Throws where it is absent. */
  required(key: string): number;
}

export function metadataReader(metadata: ReadonlyMap<string, GgufValue>, file: string): GgufMetadata {
  const wrong = (key: string, expected: string): FormatError => {
    const value = metadata.get(key)!;
    const given = value.type === 'array' ? `array of ${value.of}` : value.type;
    return new FormatError(`${file}: metadata '${key}' is ${given}, expected ${expected}`, { file, key, given, expected });
  };
  const scalar = <T extends GgufScalar>(key: string, type: string, expected: string): T | undefined => {
    const entry = metadata.get(key);
    if (entry === undefined) return undefined;
    if (typeof entry.value !== type) throw wrong(key, expected);
    return entry.value as T;
  };
  const list = <T extends GgufScalar>(key: string, type: string, expected: string): readonly T[] | undefined => {
    const entry = metadata.get(key);
    if (entry === undefined) return undefined;
    if (entry.type !== 'array' || !entry.value.every((item) => typeof item === type)) throw wrong(key, expected);
    return entry.value as readonly T[];
  };
  const number = (key: string): number | undefined => {
    const entry = metadata.get(key);
    const value = scalar<number>(key, 'number', 'a number');
    if (value === undefined || !Number.isFinite(value)) {
      if (value !== undefined) throw wrong(key, 'a finite number');
      return undefined;
    }
    // 1e-5 stored as f32 reads as 0.000009999999747…: the shortest decimal of that f32 is what was meant.
    return entry!.type === 'f32' ? Number(value.toPrecision(7)) : value;
  };
  return {
    has: (key) => metadata.has(key),
    number,
    text: (key) => scalar<string>(key, 'string', 'text'),
    flag: (key) => scalar<boolean>(key, 'boolean', 'a truth value'),
    texts: (key) => list<string>(key, 'string', 'a list of text'),
    numbers: (key) => list<number>(key, 'number', 'a list of numbers'),
    required: (key) => {
      const value = number(key);
      if (value === undefined) throw new FormatError(`${file}: metadata '${key}' is missing`, { file, key });
      return value;
    },
  };
}
