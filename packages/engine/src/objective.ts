import { nounWith, type Described, type Noun, type Scalar, type Tensor1D, type Traits } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Carry } from '@niwaki/nn';

/**
 * How outputs become a loss. The head runs in chunks of rows, so full logits never exist: `rows` says which rows of the
 * last hidden state it sees, `score` gives one loss a row of a chunk; the step's loss is the sum over all rows of all
 * micro-batches, divided by the sum of `weight`.
 */
export interface Objective extends Described {
  readonly traits?: Traits;
  /** Target tokens or rows of a batch, known on the host before any pass. A batch of weight 0 is not run. */
  weight(batch: Batch): number;
  /**
   * Rows of the stream `h` the head sees, and what each is scored against. Both [n] int32, the batch's own tensors or
   * new ones. `everyRow`: `index` is 0, 1, …, rows - 1, so nothing needs to be gathered.
   */
  rows(batch: Batch): { readonly index: Tensor1D; readonly target: Tensor1D; readonly everyRow?: boolean };
  /** Loss of each row of a chunk [rows], in nats for language models; differentiable in `outputs`. */
  score(outputs: Carry, target: Tensor1D): Tensor1D;
  /** Nonlinear over the rows' scores [n]; its value takes the place of their sum. Costs a second pass of the head. */
  reduce?(scores: Tensor1D, batch: Batch): Scalar;
}

export const anObjective: Noun = nounWith('an objective, as causalLM() gives it', 'rows', 'score');
