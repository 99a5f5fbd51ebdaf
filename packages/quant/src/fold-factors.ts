import { div, reshape, tensor, tensor1d, tidy, type Parameter, type Tensor } from '@niwaki/tensor';
import type { Coupling, Model, Site } from '@niwaki/nn';

/** Factors on the columns of readers that move into what gives those columns: the source is divided by them. */
export interface Fold {
  readonly coupling: Coupling;
  readonly factors: Float32Array;
}

/**
 * The coupling whose readers are exactly these sites: only then may what they read be divided. None where each entry of
 * the source serves several columns, or where the source is stored as codes and not about to be made anew.
 */
export function couplingOf(model: Model, readers: readonly Site[], made: ReadonlySet<Site>): Coupling | undefined {
  const paths = new Set(readers.map(({ path }) => path));
  return model.couplings.find(({ kind, source, readers: all }) => {
    if (source.serves !== 1 || all.length !== paths.size || !all.every((path) => paths.has(path))) return false;
    const site = kind === 'norm' ? undefined : siteAt(model, source.path);
    return site === undefined || made.has(site) || site.weight?.matrix !== undefined;
  });
}

const siteAt = (model: Model, path: string): Site => model.sites((site) => site.path === path)[0]!;

export interface Division {
  /** Factors of the rows of a matrix that is about to be made anew. */
  rows(site: Site): Float32Array | undefined;
  /** Divides everything else: norms, biases, float matrices that stay. */
  apply(): void;
  /** Bit for bit. */
  undo(): void;
}

/** Divides the sources of some folds, once their readers are ready. @param made sites whose matrix is made anew */
export async function divisionOf(model: Model, folds: readonly Fold[], made: ReadonlySet<Site>): Promise<Division> {
  const rows = new Map<Site, Float32Array>();
  const changes: { readonly parameter: Parameter; readonly factors: Float32Array; readonly before: Float32Array }[] = [];
  for (const { coupling, factors } of folds) {
    const { kind, source } = coupling;
    const change = async (parameter: Parameter | undefined): Promise<void> => {
      if (parameter === undefined) return;
      changes.push({ parameter, factors, before: (await parameter.read().data()).slice() as Float32Array });
    };
    if (kind === 'norm') {
      await change(model.parameters().get(`${source.path}.weight`));
      continue;
    }
    const site = siteAt(model, source.path);
    if (made.has(site)) rows.set(site, factors);
    else await change(site.weight!.matrix);
    await change(site.bias);
  }
  return {
    rows: (site) => rows.get(site),
    apply: () => {
      for (const { parameter, factors } of changes) parameter.write(tidy(() => divided(parameter.read(), factors)));
    },
    undo: () => {
      for (const { parameter, before } of changes) parameter.write(tensor(before, [...parameter.shape]));
    },
  };
}

/** Each row, or each entry of a vector, over its factor. */
export function divided<T extends Tensor>(value: T, factors: Float32Array): T {
  const by = tensor1d(factors);
  return div(value, value.rank === 1 ? by : reshape(by, [factors.length, 1])) as T;
}
