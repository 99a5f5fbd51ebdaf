import { ConfigError } from '@niwaki/tensor';
import { flatPlaces } from '@niwaki/weights';
import type { AdapterSet } from '@niwaki/nn';
import type { SpielAdapter } from './spiel.ts';

/** Some entries of a tensor, zeros elsewhere. */
export interface SparseEntries {
  readonly shape: readonly number[];
  /** Flat places, row after row, rising. */
  readonly index: Uint32Array;
  readonly values: Float32Array;
}

/**
 * What a sparse adapter changes, by name of the parameter: the sum of two is both changes. Entries that are 0 are left out.
 * Host memory: 8 bytes an entry, and as much while it sorts.
 * @throws ConfigError for sets with adapters of another kind, or with whole modules
 */
export async function taskVectorOf({ name, sites, replaced }: AdapterSet): Promise<ReadonlyMap<string, SparseEntries>> {
  const other = [...sites].find(([, { kind }]) => kind !== 'spiel')?.[0] ?? [...replaced.keys()][0];
  if (other !== undefined)
    throw new ConfigError(`adapter '${name}' changes '${other}' in another way than by single entries`, { name, path: other });
  const found = new Map<string, SparseEntries>();
  for (const [path, adapter] of sites) {
    const { shape, index, values } = adapter as SpielAdapter;
    const [places, held] = [flatPlaces(await index.read().data(), shape), await values.read().data()];
    const order = Uint32Array.from(places.keys())
      .filter((slot) => held[slot] !== 0)
      .sort((a, b) => places[a]! - places[b]!);
    found.set(`${path}.weight`, {
      shape,
      index: order.map((slot) => places[slot]!),
      values: Float32Array.from(order, (slot) => held[slot]!),
    });
  }
  return found;
}
