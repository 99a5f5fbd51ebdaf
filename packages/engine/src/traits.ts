/** The closed list of what nouns give, need, forbid or claim. Legality of a combination is computed from these alone. */
export type Token =
  | 'vjp'
  | 'jvp'
  | 'eval-mode'
  | 'dense-tile'
  | 'encode'
  | 'float-scale'
  | 'frozen-base'
  | 'global-norm'
  | 'one-commit'
  | 'accumulation'
  | 'static-tokens'
  | 'chunked-loss'
  | 'codes'
  | 'base-values'
  | 'entries'
  | 'channel-order'
  | 'optimizer'
  | 'kv'
  | 'routing';

export interface Traits {
  readonly gives?: readonly Token[];
  readonly needs?: readonly Token[];
  readonly forbids?: readonly Token[];
  readonly claims?: readonly Token[];
}
