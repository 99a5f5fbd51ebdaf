import { clearSmallest } from './keep-entries.ts';
import { isNOfM, type Amount } from './amount.ts';

export interface EliminateOptions {
  readonly shape: readonly [out: number, in_: number];
  readonly amount: Amount;
  /** Columns whose entries compete, and after which the columns to come are corrected; a multiple of m. */
  readonly blockSize: number;
  readonly breath: () => Promise<void>;
}

/**
 * The core of SparseGPT (Frantar & Alistarh 2023, algorithm 1): takes entries away column by column and moves the error of
 * each onto the columns that are still to come, as the inverse of the input's second moments says.
 * @param w [out, in] row-major; overwritten by the result
 * @param u upper factor of `inverseFactor`
 * @returns one flag an entry, 1 where kept
 */
export async function eliminate(w: Float64Array, u: Float64Array, options: EliminateOptions): Promise<Uint8Array> {
  const { shape, amount, blockSize, breath } = options;
  const [out, n] = shape;
  const kept = new Uint8Array(out * n).fill(1);
  const cost = (row: number, column: number): number => (w[row * n + column]! / u[column * n + column]!) ** 2;
  const errors = new Float64Array(blockSize);
  for (let from = 0; from < n; from += blockSize) {
    const to = Math.min(n, from + blockSize);
    if (!isNOfM(amount)) keepInBlock(kept, { out, n, from, to, cost, sparsity: amount.sparsity });
    for (let row = 0; row < out; row++) {
      const base = row * n;
      errors.fill(0);
      for (let i = from; i < to; i++) {
        if (isNOfM(amount) && i % amount.m === 0) {
          const { n: keep, m } = amount;
          const own = new Uint8Array(m).fill(1);
          const costs = Float64Array.from({ length: m }, (_, j) => cost(row, i + j));
          clearSmallest(costs, own, { from: 0, to: m, count: m - keep });
          kept.set(own, base + i);
        }
        if (kept[base + i] === 1) continue;
        const error = w[base + i]! / u[i * n + i]!;
        errors[i - from] = error;
        w[base + i] = 0;
        for (let j = i + 1; j < to; j++) w[base + j]! -= error * u[i * n + j]!;
      }
      for (let i = from; i < to; i++) {
        const error = errors[i - from]!;
        if (error === 0) continue;
        for (let j = to; j < n; j++) w[base + j]! -= error * u[i * n + j]!;
      }
      await breath();
    }
  }
  return kept;
}

interface BlockChoice {
  readonly out: number;
  readonly n: number;
  readonly from: number;
  readonly to: number;
  readonly sparsity: number;
  cost(row: number, column: number): number;
}

/** All entries of a block compete, row after row. */
function keepInBlock(kept: Uint8Array, { out, n, from, to, sparsity, cost }: BlockChoice): void {
  const size = to - from;
  const costs = new Float64Array(out * size);
  for (let row = 0; row < out; row++) for (let i = 0; i < size; i++) costs[row * size + i] = cost(row, from + i);
  const own = new Uint8Array(out * size).fill(1);
  clearSmallest(costs, own, { from: 0, to: own.length, count: Math.floor(own.length * sparsity) });
  for (let row = 0; row < out; row++) kept.set(own.subarray(row * size, (row + 1) * size), row * n + from);
}
