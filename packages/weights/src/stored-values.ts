/** A format as data: a weight is one. */
export interface Stored {
  readonly kind?: string;
  readonly options?: unknown;
}

/** The format of a weight's values, with a mask or positions around them taken off. */
export function storedValues(stored: Stored): Stored {
  const { base, values } = (stored.options ?? {}) as { readonly base?: Stored; readonly values?: Stored };
  const inner = base ?? values;
  return inner === undefined ? stored : storedValues(inner);
}

/** Two bytes an entry, and 0 is one of the values: one cast is all that a matrix loses in it. */
export const isHalf = ({ kind, options }: Stored): boolean => {
  const { format } = (options ?? {}) as { readonly format?: unknown };
  return kind === 'gguf' && (format === 'F16' || format === 'BF16');
};
