import { ConfigError, NumericError, type Traits } from '@niwaki/tensor';
import { sparseWeight, type Store, type Weight } from '@niwaki/weights';
import type { Collectors, Method } from '@niwaki/engine';
import type { Site } from '@niwaki/nn';
import { amountOf, checkAmount, isNOfM, type Amount, type AmountOptions } from './amount.ts';
import type { Scores } from './keep-entries.ts';

export interface PruneMethodOptions extends AmountOptions {
  /**
   * 'masked' (default): as before, and a bit an entry that keeps the zeros; products cost what they did. 'n-of-m' (with n
   * and m) and 'csr' store what is kept alone, and every product builds the matrix first: smaller, slower.
   */
  readonly store?: Store;
}

export const pruneNames = ['sparsity', 'n', 'm', 'store'] as const;

/** A matrix on the host. */
export interface HostMatrix {
  readonly path: string;
  readonly shape: readonly [out: number, in_: number];
  readonly values: Float32Array;
}

/** What another method needs of a pruner to begin from its choice. */
export interface PrunerChoice {
  readonly amount: Amount;
  readonly collect?: Collectors;
  /** One score an entry; in each row, or each group, the least go. */
  scores(matrix: HostMatrix, statistics: Readonly<Record<string, unknown>>): Scores | Promise<Scores>;
}

/** A method of `prune`, which may also be the start of another: `dsnot({ initial: wanda() })`. */
export interface Pruner extends Method {
  readonly choice: PrunerChoice;
}

/** What all pruners take, checked. */
export function pruneOptions(
  kind: string,
  options: PruneMethodOptions,
): {
  readonly amount: Amount;
  readonly store: Store;
  readonly named: { readonly sparsity?: number; readonly n?: number; readonly m?: number; readonly store: Store };
} {
  const amount = amountOf(kind, options);
  const { store = 'masked' } = options;
  if (!['masked', 'n-of-m', 'csr'].includes(store)) {
    throw new ConfigError(`${kind}: store must be 'masked', 'n-of-m' or 'csr', got ${JSON.stringify(store)}`, { store });
  }
  if (store === 'n-of-m' && !isNOfM(amount)) throw new ConfigError(`${kind}: store 'n-of-m' needs n and m`, { store });
  return { amount, store, named: { ...amount, store } };
}

/** A mask goes over whatever can be written again; the other stores hold the numbers that are kept, and no rows by id. */
export const prunerTraits = (store: Store): Traits =>
  store === 'masked'
    ? { needs: ['encode'], gives: ['encode', 'zeros'], keeps: ['floats', 'trains', 'lookup'] }
    : {
        needs: ['floats'],
        gives: ['floats', 'encode', 'zeros'],
        keeps: ['trains'],
        help: { floats: "Prune before quantizing, or use store: 'masked'." },
      };

/** Whether a site can be pruned so. Allocates nothing. */
export function checkSite({ path, weight }: Site, amount: Amount): void {
  if (weight === undefined) throw new ConfigError(`'${path}' stores no matrix to prune`, { path });
  checkAmount(path, weight.shape, amount);
}

/** A site's matrix in f32 on the host. @throws NumericError where it is not finite */
export async function hostMatrix({ path, weight }: Site): Promise<HostMatrix> {
  const dense = weight!.dense();
  const values = (await dense.data()) as Float32Array;
  dense.dispose();
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) {
    const width = weight!.shape[1];
    const at = [Math.floor(bad / width), bad % width] as const;
    throw new NumericError(`'${path}.weight' holds ${values[bad]} at [${at}]: it cannot be pruned`, {
      path,
      at,
      help: 'Repair the checkpoint, or leave this matrix out.',
    });
  }
  return { path, shape: weight!.shape, values };
}

/** A site's new weight: `values` where the flags are 1, in the precision that the site has. */
export const prunedWeight = (
  { path, weight }: Site,
  values: ArrayLike<number>,
  kept: Uint8Array,
  { amount, store }: { amount: Amount; store: Store },
): Promise<Weight> => sparseWeight(path, weight!, { values, kept }, isNOfM(amount) ? { store, ...amount } : { store });
