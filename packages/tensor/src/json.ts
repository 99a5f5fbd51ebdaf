import type { Tensor } from './tfjs.ts';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };
export type Tree = Tensor | number | string | readonly Tree[] | { readonly [key: string]: Tree };

/** The only rule of resuming, for every noun: what changes between steps is a plain tree. */
export interface Stateful {
  state(): Tree;
  restore(tree: Tree): void;
}
