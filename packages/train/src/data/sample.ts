/** One tokenized document. */
export interface Sample {
  readonly ids: Int32Array;
  /** 1 where the token is learned; the first token never is, there is nothing to predict it from. */
  readonly learn: Uint8Array;
  readonly kind: 'text' | 'completion' | 'chat';
  /** Line of the data file, from 1. */
  readonly line?: number;
}
