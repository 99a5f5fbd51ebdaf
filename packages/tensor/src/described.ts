import type { Json } from './json.ts';

/** What a name and options tell apart from others of its kind: an optimizer, an objective, an estimator. */
export interface Described {
  readonly name: string;
  /**
   * What it was made with, defaults included, as far as it decides what comes out: plain data, and values with a `toJSON`.
   * Absent: the name says all there is.
   */
  readonly options?: { readonly [option: string]: unknown };
}

export type Description = { readonly kind: string; readonly [option: string]: Json };

/**
 * Its name and its options as plain JSON, to be compared and kept. A function without a `toJSON` stands as its name, a number
 * that JSON has not as text.
 * @example descriptionOf(adamw({ learningRate: 1e-3 })).kind // 'adamw'
 */
export const descriptionOf = ({ name, options }: Described): Description =>
  JSON.parse(JSON.stringify({ kind: name, ...options }, (_, value: unknown) => plain(value))) as Description;

function plain(value: unknown): unknown {
  if (typeof value === 'function') return `function ${value.name || 'without a name'}`;
  if (typeof value === 'bigint' || (typeof value === 'number' && !Number.isFinite(value))) return String(value);
  return value;
}
