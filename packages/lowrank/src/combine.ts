import {
  checkCall,
  checkCount,
  checkOptions,
  concat,
  ConfigError,
  matMul,
  mul,
  NotFoundError,
  qr,
  slice,
  svd,
  tidy,
  transpose,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import { aModel, type Adapter, type Model, type Site } from '@niwaki/nn';
import { adapterNamed, checkName, fieldsFor, targetsFor, type PeftSet } from '@niwaki/peft';
import type { LoraAdapter, LoraSpec } from './lora-adapter.ts';
import { loraEmbedding } from './lora-embedding.ts';
import { loraLinear } from './lora-linear.ts';
import { lora } from './lora.ts';

export interface CombineOptions {
  /** Of the new adapter. */
  readonly name: string;
  /** Cuts each site's sum to the nearest matrix of this rank; default: the sum of the ranks, which loses nothing. */
  readonly rank?: number;
}

export interface Combined {
  readonly set: PeftSet;
  readonly sites: readonly {
    readonly path: string;
    readonly rank: number;
    /** Frobenius norm of what the cut lost over that of the sum; 0 without `rank`. */
    readonly relativeError: number;
  }[];
}

/**
 * A new LoRA whose change of the model is Σ weight·change over other ones: A stacked, B side by side with weights and
 * scales multiplied in, and a scale of 1. Exact, also for rsLoRA, unequal ranks and negative weights; with `rank`, the
 * best approximation (Eckart & Young). It is attached, and active if nothing else is on the model.
 * @param weights by adapter name
 * @throws ConfigError for adapters that are no plain product: DoRA, a bias, whole modules, token rows
 * @example await combineAdapters(model, { french: 0.7, polite: 0.3 }, { name: 'both' });
 */
export async function combineAdapters(model: Model, weights: Readonly<Record<string, number>>, options: CombineOptions): Promise<Combined> {
  checkCall("combineAdapters(model, { french: 0.7, polite: 0.3 }, { name: 'both' })", { model: [model, aModel] });
  checkOptions('combineAdapters', options, ['name', 'rank']);
  const { name, rank } = options;
  checkName(model, name);
  if (rank !== undefined) checkCount('combineAdapters', 'rank', rank);
  const sources = Object.entries(weights).map(([source, weight]) => {
    if (!Number.isFinite(weight))
      throw new ConfigError(`the weight of '${source}' must be finite, got ${weight}`, { name: source, weight });
    const set = adapterNamed(model, source);
    if (set.replaced.size > 0) throw refused(source, [...set.replaced.keys()].join(', '));
    for (const [path, adapter] of set.sites) if (!isPlain(adapter)) throw refused(source, `${adapter.kind} at ${path}`);
    return { weight, sites: set.sites as ReadonlyMap<string, LoraAdapter> };
  });
  if (sources.length === 0) throw new NotFoundError('no adapter is given, so there is nothing to combine');
  const sites = model.sites((site) => sources.some((source) => source.sites.has(site.path)));

  const made = new Map<string, LoraAdapter>();
  try {
    const report = [];
    for (const site of sites) {
      const parts = sources.flatMap(({ weight, sites: own }) => (own.has(site.path) ? [{ weight, adapter: own.get(site.path)! }] : []));
      const { adapter, relativeError } = await combineSite(site, parts, name, rank);
      made.set(site.path, adapter);
      report.push({ path: site.path, rank: adapter.rank, relativeError });
    }
    const set = setOf(model, sites, made, name);
    model.attach(set);
    return { set, sites: report };
  } catch (error) {
    for (const adapter of made.values()) for (const parameter of Object.values(adapter.parameters)) parameter.dispose();
    throw error;
  }
}

const refused = (name: string, what: string): ConfigError =>
  new ConfigError(`adapter '${name}' is no plain product of two matrices (${what}), so no LoRA is its weighted sum`, {
    name,
    what,
    help: 'Combine LoRA or rsLoRA adapters; merge the others.',
  });

const pairs = [
  ['lora_A.weight', 'lora_B.weight'],
  ['lora_embedding_A', 'lora_embedding_B'],
] as const;

// A pair that took a part of the base over is a change of what is left, not of the model.
const isPlain = (adapter: Adapter): boolean =>
  adapter.startsFrom === 'base' && adapter.delta !== undefined && factorsOf(adapter) !== undefined;

function factorsOf({ parameters }: Adapter): { readonly a: Parameter; readonly b: Parameter } | undefined {
  for (const [a, b] of pairs) if (parameters[a] !== undefined && parameters[b] !== undefined) return { a: parameters[a], b: parameters[b] };
  return undefined;
}

async function combineSite(
  site: Site,
  parts: readonly { readonly weight: number; readonly adapter: LoraAdapter }[],
  name: string,
  rank: number | undefined,
): Promise<{ adapter: LoraAdapter; relativeError: number }> {
  const whole = tidy(() => {
    const factors = parts.map(({ weight, adapter }) => ({ ...factorsOf(adapter)!, factor: weight * adapter.scale }));
    return {
      a: concat(factors.map(({ a }) => a.read() as Tensor2D)) as Tensor2D,
      b: concat(
        factors.map(({ b, factor }) => mul(b.read(), factor) as Tensor2D),
        1,
      ) as Tensor2D,
    };
  });
  const { a, b, relativeError } = rank === undefined || rank >= whole.a.shape[0] ? { ...whole, relativeError: 0 } : await cut(whole, rank);
  const spec: LoraSpec = { path: site.path, point: site.point, name, rank: a.shape[0], alpha: a.shape[0], rslora: false, dropout: 0 };
  return { adapter: site.point === 'embedding' ? loraEmbedding(spec, { a, b }) : loraLinear(spec, { a, b }), relativeError };
}

interface Pair {
  readonly a: Tensor2D;
  readonly b: Tensor2D;
}

/** The nearest product of a lower rank, from the thin factors alone: B·A = Q₁·(R₁·R₂ᵀ)·Q₂ᵀ. Takes the pair over. */
async function cut({ a, b }: Pair, rank: number): Promise<Pair & { relativeError: number }> {
  const [total, width] = a.shape;
  const out = b.shape[0];
  const at = transpose(a) as Tensor2D;
  const small = total <= Math.min(out, width);
  const left = small ? await qr(b) : undefined;
  const right = small ? await qr(at) : undefined;
  const core = tidy((): Tensor2D => (left && right ? matMul(left.r, right.r, false, true) : matMul(b, a)));
  const { u, s, v } = await svd(core);
  const values = (await s.data()) as Float32Array;
  const result = tidy(() => {
    const top = (q: Tensor2D | undefined, vectors: Tensor2D): Tensor2D => {
      const some = slice(vectors, [0, 0], [vectors.shape[0], rank]);
      return q === undefined ? some : matMul(q, some);
    };
    return { b: mul(top(left?.q, u), slice(s, [0], [rank])) as Tensor2D, a: transpose(top(right?.q, v)) as Tensor2D };
  });
  for (const tensor of [a, b, at, core, u, s, v, left?.q, left?.r, right?.q, right?.r]) tensor?.dispose();
  const squares = (from: number): number => values.subarray(from).reduce((sum, value) => sum + value * value, 0);
  return { ...result, relativeError: squares(0) === 0 ? 0 : Math.sqrt(squares(rank) / squares(0)) };
}

function setOf(model: Model, sites: readonly Site[], made: ReadonlyMap<string, LoraAdapter>, name: string): PeftSet {
  const ranks = [...made.values()].map((adapter) => adapter.rank);
  const most = Math.max(...ranks);
  // Alpha follows the rank at every site: the scale is 1.
  const odd = Object.fromEntries(
    [...made].filter(([, { rank }]) => rank !== most).map(([path, { rank }]) => [`^${path.replaceAll('.', '\\.')}`, rank]),
  );
  const method = lora({ rank: most, alpha: most, rankPattern: odd, alphaPattern: odd });
  const paths = sites.map((site) => site.path);
  return {
    name,
    method,
    sites: made,
    replaced: new Map(),
    base: model.info.source,
    targets: targetsFor(model, paths, sites, method),
    fields: fieldsFor(model),
    warnings: [],
    alsoStored: new Map(),
  };
}
