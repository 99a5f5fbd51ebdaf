import { ConfigError, type Gradient, type Tensor } from '@niwaki/tensor';

export const dense = (value: Tensor): Gradient => ({ kind: 'dense', value });

/** The value of a dense gradient; transforms that take no other kind are never given one, so another kind is a bug. */
export function valueOf(gradient: Gradient): Tensor {
  if (gradient.kind === 'dense') return gradient.value;
  throw new ConfigError(`internal: a transform of dense gradients was given '${gradient.kind}'`, { kind: gradient.kind });
}
