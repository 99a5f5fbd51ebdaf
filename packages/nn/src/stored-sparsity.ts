import { FormatError, NiwakiError } from '@niwaki/tensor';
import { checkNOfM, disposeWeight, isHalf, sparseFormOf, sparseWeight, type SparseForm, type Weight } from '@niwaki/weights';
import type { Model, Site } from './graph.ts';
import { ownList, sitesOf, withOwnList, type HfConfig } from './own-config.ts';

// A file holds a sparse matrix as an ordinary tensor with its zeros, which every reader takes. That these zeros are meant to
// stay, and how the matrix is stored in memory, is said by `niwaki.sparse`: a list of { sites, store, n?, m? }. Its zeros are
// the mask: an entry that is kept and happens to be 0 when it is saved comes back as one that is not kept.

/** A config that says which matrices keep their zeros now, whatever it said when it was read. */
export const withSparsity = (config: HfConfig, sites: readonly Site[]): HfConfig =>
  withOwnList(
    config,
    'sparse',
    sites.flatMap(({ path, weight, tiedTo }) => {
      const form = weight === undefined || tiedTo !== undefined ? undefined : sparseFormOf(weight);
      return form === undefined ? [] : [[path, form] as const];
    }),
  );

/**
 * Stores what a config names under `niwaki.sparse` in its sparse form again, matrix by matrix; each is read back once, and
 * twice there for a moment.
 * @throws FormatError for a field that is not as it must be, a path that is no matrix of the model or is named twice, a matrix
 *   in another format, and zeros that are not those of its form
 */
export async function restoreSparsity(model: Model, config: HfConfig): Promise<void> {
  const sites = new Map(model.sites(() => true).map((site) => [site.path, site]));
  const done = new Set<string>();
  for (const [i, entry] of ownList(config, 'sparse').entries()) {
    const field = `niwaki.sparse[${i}]`;
    const form = formOf(entry, field);
    for (const path of sitesOf(entry as object, field)) {
      const site = sites.get(path);
      if (site?.weight === undefined || site.tiedTo !== undefined || done.has(path)) {
        const problem = done.has(path) ? 'is named twice' : 'is no matrix of the model';
        throw new FormatError(`${field} of the config: '${path}' ${problem}`, { field, path });
      }
      done.add(path);
      await restore(model, site, form, field);
    }
  }
}

async function restore(model: Model, { path, weight }: Site, form: SparseForm, field: string): Promise<void> {
  const old = weight!;
  if (old.kind !== 'dense' && !isHalf(old)) {
    throw new FormatError(`${field} of the config: '${path}' is stored as ${old.kind}, and zeros are those of plain numbers`, {
      field,
      path,
      kind: old.kind,
    });
  }
  const dense = old.dense();
  let values: Float32Array;
  try {
    values = (await dense.data()) as Float32Array;
  } finally {
    dense.dispose();
  }
  const kept = Uint8Array.from(values, (value) => (value === 0 ? 0 : 1));
  let sparse: Weight | undefined;
  try {
    sparse = await sparseWeight(path, old, { values, kept }, form);
    model.replace(path, sparse);
  } catch (cause) {
    if (sparse !== undefined) disposeWeight(sparse);
    if (!NiwakiError.isInstance(cause)) throw cause;
    throw new FormatError(`${field} of the config: ${cause.message}`, { field, path, cause });
  }
}

function formOf(entry: unknown, field: string): SparseForm {
  const { store, n, m } = Object(entry) as { readonly [name: string]: unknown };
  if (store === 'masked' || store === 'csr') return { store };
  if (store !== 'n-of-m') {
    throw new FormatError(`${field}.store of the config must be 'masked', 'n-of-m' or 'csr', got ${JSON.stringify(store)}`, {
      field: `${field}.store`,
      value: store,
    });
  }
  const pattern = { n: n as number, m: m as number };
  try {
    checkNOfM(pattern, `${field} of the config`);
  } catch (cause) {
    throw new FormatError((cause as Error).message, { field, value: entry, cause });
  }
  return { store, ...pattern };
}
