import type { Scalar, Tensor, Tensor1D, View } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Carry } from '@niwaki/nn';

/**
 * How outputs become a loss. The head runs in chunks of rows, so full logits never exist: `rows` says which rows of the
 * last hidden state it sees, `score` gives one loss a row of a chunk; the step's loss is the sum over all rows of all
 * micro-batches, divided by the sum of `weight`.
 */
export interface Objective {
  readonly name: string;
  /** Target tokens or rows of a batch, known before any pass. */
  weight(batch: Batch): number;
  /** Rows of `h` the head sees, and what each is scored against. Both [n] int32. */
  rows(batch: Batch): { readonly index: Tensor1D; readonly target: Tensor1D };
  /** Loss of each row of a chunk [rows], in nats for language models; differentiable in `outputs`. */
  score(outputs: Carry, target: Tensor1D): Tensor1D;
  /** No-gradient passes wanted beside the main one: reference policy, teacher. */
  readonly companions?: Readonly<Record<string, View>>;
  /** Nonlinear over rows; absent: weighted mean. */
  reduce?(scores: Tensor, batch: Batch): Scalar;
}
