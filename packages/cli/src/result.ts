import type { Json } from '@niwaki/tensor';

/** What a command found: for a program (--json) and for a person. */
export interface Result {
  readonly json: { readonly [name: string]: Json };
  readonly text: string;
}
