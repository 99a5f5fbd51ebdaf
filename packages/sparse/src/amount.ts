import { ConfigError } from '@niwaki/tensor';
import { checkGroups, checkNOfM, type NOfM } from '@niwaki/weights';

/** How much a pruner takes away: a part of the entries, or all but n of every m along a row. */
export type Amount = { readonly sparsity: number } | NOfM;

export interface AmountOptions {
  /** Part of the entries that becomes 0: from 0, below 1. Default 0.5 where no n and m are given. */
  readonly sparsity?: number;
  /** Entries kept of every m consecutive ones of a row; both or neither, in place of `sparsity`. */
  readonly n?: number;
  /** 4, 8, 16 or 32. */
  readonly m?: number;
}

/** @throws ConfigError */
export function amountOf(kind: string, { sparsity, n, m }: AmountOptions): Amount {
  if (n === undefined && m === undefined) {
    const part = sparsity ?? 0.5;
    if (!(part >= 0 && part < 1))
      throw new ConfigError(`${kind}: sparsity must be from 0 to below 1, got ${String(part)}`, { sparsity: part });
    return { sparsity: part };
  }
  if (n === undefined || m === undefined || sparsity !== undefined) {
    throw new ConfigError(`${kind}: give sparsity, or n and m, got ${JSON.stringify({ sparsity, n, m })}`, { sparsity, n, m });
  }
  checkNOfM({ n, m }, kind);
  return { n, m };
}

export const isNOfM = (amount: Amount): amount is NOfM => 'n' in amount;

/** Whether a matrix can be pruned so. @throws ShapeError */
export function checkAmount(path: string, shape: readonly [number, number], amount: Amount): void {
  if (isNOfM(amount)) checkGroups(path, shape, amount);
}
