import { add, dispose, div, mul, scalar, square, sub, sum, tidy, zeros, type Scalar, type Tensor, type Tensor1D } from '@niwaki/tensor';
import type { Collector } from '@niwaki/engine';
import type { Site } from '@niwaki/nn';

const widthOf = (site: Site): number => site.weight!.shape[1];

/** Σ x² over the rows of a batch by column, averaged over the batches, f32 [in]: the squared norms of Wanda, one sequence a batch. */
export function inputSquares(): Collector<Tensor1D> {
  return {
    init: (site) => ({ total: zeros([widthOf(site)]), batches: scalar(0) }),
    update: ({ total, batches }, x, { mask }) => ({
      total: add(total!, sum(square(mask === undefined ? x : mul(x, mask)), 0)),
      batches: add(batches!, 1),
    }),
    finish: ({ total, batches }) => averaged(total!, batches!),
    release: dispose,
  };
}

export interface InputMoments {
  readonly squares: Tensor1D;
  /** Σ x over the rows of a batch, averaged over the batches. */
  readonly sums: Tensor1D;
  /** Mean over all rows of the squared distance from the batch's mean. */
  readonly variances: Tensor1D;
}

/** What DSnoT needs of an input, by column: 12 · in bytes. A batch is taken for one sequence. */
export function inputMoments(): Collector<InputMoments> {
  return {
    init: (site) => ({
      squares: zeros([widthOf(site)]),
      sums: zeros([widthOf(site)]),
      spread: zeros([widthOf(site)]),
      batches: scalar(0),
    }),
    update: ({ squares, sums, spread, batches }, x, { count, mask }) => {
      const counted = (rows: Tensor): Tensor => (mask === undefined ? rows : mul(rows, mask));
      const total = sum(counted(x), 0);
      return {
        squares: add(squares!, sum(square(counted(x)), 0)),
        sums: add(sums!, total),
        spread: add(spread!, sum(square(counted(sub(x, div(total, count)))), 0)),
        batches: add(batches!, 1),
      };
    },
    finish: ({ squares, sums, spread, batches }, count) => {
      const found = tidy(() => ({
        squares: div(squares!, batches!) as Tensor1D,
        sums: div(sums!, batches!) as Tensor1D,
        variances: div(spread!, count) as Tensor1D,
      }));
      dispose([squares!, sums!, spread!, batches!]);
      return found;
    },
    release: ({ squares, sums, variances }) => dispose([squares, sums, variances]),
  };
}

function averaged(total: Tensor, batches: Tensor): Tensor1D {
  const mean = div(total, batches as Scalar) as Tensor1D;
  dispose([total, batches]);
  return mean;
}
