import type { Weight } from '@niwaki/weights';

/** Two bytes an entry: one cast at the end is all that is lost, and what everybody expects of such a model. */
export const isHalf = ({ kind, options }: Weight): boolean => {
  const { format } = (options ?? {}) as { readonly format?: unknown };
  return kind === 'gguf' && (format === 'F16' || format === 'BF16');
};

/** Whether the numbers themselves are stored, not codes for them. */
export const isFloat = (weight: Weight): boolean => weight.exact === true || isHalf(weight);
