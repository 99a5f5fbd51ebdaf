import type { MaskValue, Parameter, Sink } from './parameter.ts';
import type { Noise } from './noise.ts';
import type { Tensor, Tensor1D } from './tfjs.ts';

/** How one forward reads parameters. Immutable and passed explicitly, so it survives an await. */
export interface View {
  of(parameter: Parameter): Read;
  /** Whether anything under a path is read differently from plain. */
  touches(path: string): boolean;
  /** Active adapters: names in order, 'none' (the base alone), or one index per row; absent = the model's own list. */
  readonly adapters?: readonly string[] | 'none' | Tensor1D;
}

export type Read =
  | { readonly kind: 'plain' }
  | { readonly kind: 'noise'; readonly scale: number; readonly noise: Noise; readonly mask?: MaskValue }
  | { readonly kind: 'offset'; readonly value: Tensor }
  | { readonly kind: 'other'; readonly parameter: Parameter }
  | { readonly kind: 'derived'; value(): Tensor; pull(gradient: Tensor, sink: Sink): void };

const plain: Read = { kind: 'plain' };

/** Reads every parameter as it is stored. */
export const plainView: View = { of: () => plain, touches: () => false };

/** The same view with other active adapters. */
export const withAdapters = (adapters: NonNullable<View['adapters']>, view: View = plainView): View => ({ ...view, adapters });
