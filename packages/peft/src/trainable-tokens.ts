import {
  add,
  cast,
  denseParameter,
  DataError,
  expandDims,
  gather,
  greaterEqual,
  matMul,
  maximum,
  mul,
  nearest,
  NotFoundError,
  scalar,
  sub,
  tensor1d,
  tidy,
  unsortedSegmentSum,
  withGradient,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Adapter, Model, Site } from '@niwaki/nn';
import { adapterParameter, type TargetOptions } from './adapter-method.ts';
import { endsWithName } from './targets.ts';

export const tokensSlot = 'token_adapter.trainable_tokens_delta';

export interface TokenTarget {
  /** The site whose rows train, and those tied to it: they see the same rows. */
  readonly sites: readonly Site[];
  readonly ids: readonly number[];
}

/**
 * Which rows of which embeddings train.
 * @throws NotFoundError for a module that is not there; DataError for ids outside the vocabulary or given twice
 */
export function tokenTargets(model: Model, tokens: TargetOptions['trainableTokens']): TokenTarget[] {
  if (tokens === undefined) return [];
  const sites = model.stages().flatMap((stage) => stage.sites);
  const embedding = sites.find((site) => site.point === 'embedding');
  const byName: readonly (readonly [string, readonly number[]])[] = isList(tokens)
    ? [[embedding?.path ?? 'embed_tokens', tokens]]
    : Object.entries(tokens);
  const named = byName.map(([name, ids]) => ({ site: siteNamed(sites, name), ids }));
  const targets: TokenTarget[] = [];
  for (const { site, ids } of named) {
    checkIds(site, ids);
    const sameRows = targets.find((target) => target.sites.includes(site) && target.ids.join() === ids.join());
    if (sameRows !== undefined) continue;
    const tied = sites.filter(
      (other) =>
        other !== site && other.weight === site.weight && !named.some((own) => own.site === other && own.ids.join() !== ids.join()),
    );
    targets.push({ sites: [site, ...tied], ids });
  }
  return targets;
}

const isList = (tokens: NonNullable<TargetOptions['trainableTokens']>): tokens is readonly number[] => Array.isArray(tokens);

function siteNamed(sites: readonly Site[], name: string): Site {
  const site = sites.find(({ path, point }) => (point === 'embedding' || point === 'head') && endsWithName(path, name));
  if (site !== undefined) return site;
  const near = nearest(
    name,
    sites.map(({ path }) => path),
  );
  throw new NotFoundError(`trainableTokens names no embedding: '${name}'`, {
    name,
    nearest: near,
    help: `Nearest names: ${near.join(', ')}.`,
  });
}

function checkIds({ path, weight }: Site, ids: readonly number[]): void {
  const vocabulary = weight!.shape[0];
  const wrong = ids.find((id, i) => !Number.isInteger(id) || id < 0 || id >= vocabulary || ids.indexOf(id) !== i);
  if (ids.length > 0 && wrong === undefined) return;
  throw new DataError(
    `trainableTokens of '${path}': ${wrong === undefined ? 'no id at all' : `${wrong} is no id of a vocabulary of ${vocabulary}, or is given twice`}`,
    {
      path,
      id: wrong,
      vocabulary,
    },
  );
}

/** The rows as they are in the base: what training starts from. New f32 [n, width]. */
export const currentRows = (site: Site, ids: readonly number[]): Tensor2D =>
  tidy(() => gather(site.weight!.dense(), tensor1d([...ids], 'int32')) as Tensor2D);

/**
 * Replaces single rows of an embedding, and of the heads tied to it, by trained ones: n·width numbers instead of the
 * whole table. One adapter per site of the target; they share one parameter.
 * @param rows [n, width], new values and not differences; taken over
 */
export function trainableTokens({ sites, ids }: TokenTarget, rows: Tensor2D, name: string): Map<string, Adapter> {
  const [site] = sites as [Site];
  const delta = adapterParameter(site.path, name, tokensSlot, rows, 'embedding');
  const slots = new Int32Array(site.weight!.shape[0]).fill(-1);
  for (const [row, id] of ids.entries()) slots[id] = row;
  // Which row replaces a token's, or -1: as long as the vocabulary, 4 bytes each.
  const table = denseParameter(`${site.path}.token_adapter.slots.${name}`, tensor1d(slots, 'int32'), { role: 'index' });
  return new Map(sites.map((at) => [at.path, tokensAt(at, { delta, table, ids })]));
}

interface Tokens {
  readonly delta: Parameter;
  readonly table: Parameter;
  readonly ids: readonly number[];
}

export const isTokens = (adapter: Adapter): boolean => adapter.kind === 'trainable-tokens';

const tokensAt = ({ point }: Site, { delta, table, ids }: Tokens): Adapter => ({
  kind: 'trainable-tokens',
  point,
  parameters: { [tokensSlot]: delta, slots: table },
  apply: (x, next, call) => {
    const [rows, slots] = [call.value(delta) as Tensor2D, table.read() as Tensor1D];
    if (point === 'embedding') return replaceRows(next(x), gather(slots, x as Tensor1D) as Tensor1D, rows);
    return replaceColumns(next(x), x as Tensor2D, rows, slots, ids);
  },
  merge: async (weight) => tidy(() => ({ matrix: replaceRows(weight.dense(), table.read() as Tensor1D, delta.read() as Tensor2D) })),
  startsFrom: 'base',
});

/** -1 reads row 0, which the mask then takes out. */
const rowOf = (slots: Tensor): Tensor1D => maximum(slots, scalar(0, 'int32')) as Tensor1D;
const hits = (slots: Tensor): Tensor => cast(greaterEqual(slots, 0), 'float32');

/** y with row i replaced by rows[slots[i]] where that is not negative. */
function replaceRows(y: Tensor2D, slots: Tensor1D, rows: Tensor2D): Tensor2D {
  return withGradient(
    [y, rows],
    (save) => {
      save([slots]);
      const hit = expandDims(hits(slots), 1);
      return add(mul(y, sub(1, hit)), mul(gather(rows, rowOf(slots)), hit));
    },
    (dy, [saved]) => {
      const hit = expandDims(hits(saved!), 1);
      return [mul(dy, sub(1, hit)), unsortedSegmentSum(mul(dy, hit), rowOf(saved!), rows.shape[0])];
    },
  ) as Tensor2D;
}

/** A tied head's logits y with the columns of the trained tokens computed from their rows. */
function replaceColumns(y: Tensor2D, x: Tensor2D, rows: Tensor2D, slots: Tensor1D, ids: readonly number[]): Tensor2D {
  return withGradient(
    [y, x, rows],
    (save) => {
      save([x, rows, slots]);
      const hit = hits(slots);
      return add(mul(y, sub(1, hit)), mul(gather(matMul(x, rows, false, true), rowOf(slots), 1), hit));
    },
    (dy, saved) => {
      const [sx, sRows, sSlots] = saved as [Tensor2D, Tensor2D, Tensor1D];
      const own = gather(dy, tensor1d([...ids], 'int32'), 1) as Tensor2D;
      return [mul(dy, sub(1, hits(sSlots))), matMul(own, sRows), matMul(own, sx, true, false)];
    },
  ) as Tensor2D;
}
