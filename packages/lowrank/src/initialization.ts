import { matMul, mul, noise, qr, reshape, slice, sub, tidy, transpose, zeros, ShapeError, type Draw, type Tensor2D } from '@niwaki/tensor';
import type { Json } from '@niwaki/tensor';
import type { Model, Site } from '@niwaki/nn';
import type { Weight } from '@niwaki/weights';
import { olora } from './olora.ts';
import { pissa } from './pissa.ts';

export interface InitialPair {
  /** [rank, in] */
  readonly a: Tensor2D;
  /** [out, rank] */
  readonly b: Tensor2D;
  /** What the site holds from now on, where the start `rewrites` it. */
  readonly base?: Weight;
}

export interface InitContext {
  readonly out: number;
  readonly in: number;
  readonly rank: number;
  /** The adapter's scale s, for starts that must undo it. */
  readonly scale: number;
  readonly draw: Draw;
  /** Path of A; noise is addressed as `path#init`. */
  readonly aPath: string;
  readonly bPath: string;
  readonly weight: Weight;
  readonly site: Site;
  /** What `plan` gave for the site. */
  readonly planned?: unknown;
}

/** Where a pair would start. */
export interface InitSite {
  readonly out: number;
  readonly in: number;
  readonly rank: number;
  readonly site: Site;
  readonly model: Model;
}

/** How a pair starts. A start is a value, so that each one is a file of its own and `lora({ init })` takes any. */
export interface Initializer {
  /** As PEFT's `init_lora_weights` says it. */
  readonly name: boolean | string;
  /** Of the start itself, for recipes. */
  readonly options?: { readonly [name: string]: Json };
  /**
   * Absent: the base stays as it is. 'residual': the base becomes W - s·B·A in f32, from which W comes back. 'quantized':
   * it becomes codes, from which W does not.
   */
  readonly rewrites?: 'residual' | 'quantized';
  /** The rewritten base follows from W, rank and scale alone, so that whoever loads a file of that name makes it again. */
  readonly repeatable?: boolean;
  /** s·(B·A - B₀·A₀) is what training changed, so that a plain LoRA of twice the rank can stand for it on the original base. */
  readonly portable?: boolean;
  /** Throws when the site cannot have it; before anything is allocated. */
  check?(at: InitSite): void;
  /** Sees all sites before the first pair is made: budgets over the model. By site path. */
  plan?(contexts: readonly InitContext[], model: Model): Promise<ReadonlyMap<string, unknown>>;
  linear(context: InitContext): Promise<InitialPair>;
}

const uniform = (shape: [number, number], bound: number, draw: Draw, path: string): Tensor2D =>
  tidy(() => sub(mul(noise(shape, draw.at(`${path}#init`), 'uniform'), 2 * bound), bound)) as Tensor2D;

const gaussian = (shape: [number, number], deviation: number, draw: Draw, path: string): Tensor2D =>
  tidy(() => mul(noise(shape, draw.at(`${path}#init`), 'gaussian'), deviation)) as Tensor2D;

/** A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming's uniform with a = sqrt(5); B = 0. */
const kaiming: Initializer = {
  name: true,
  linear: async ({ out, in: width, rank, draw, aPath }) => ({
    a: uniform([rank, width], width ** -0.5, draw, aPath),
    b: zeros([out, rank]),
  }),
};

/** A ~ N(0, 1/rank²), B = 0. */
const normal: Initializer = {
  name: 'gaussian',
  linear: async ({ out, in: width, rank, draw, aPath }) => ({ a: gaussian([rank, width], 1 / rank, draw, aPath), b: zeros([out, rank]) }),
};

/** Both random: the adapter changes the model from the start. For tests. */
const random: Initializer = {
  name: false,
  linear: async ({ out, in: width, rank, draw, aPath, bPath }) => ({
    a: uniform([rank, width], width ** -0.5, draw, aPath),
    b: uniform([out, rank], rank ** -0.5, draw, bPath),
  }),
};

/**
 * A from the odd rows of an orthogonal matrix and B from the even ones: B·A = 0 although neither is zero, so both get a
 * gradient from the first step.
 */
const orthogonal: Initializer = {
  name: 'orthogonal',
  check: ({ rank }) => {
    if (rank % 2 === 1)
      throw new ShapeError(`an orthogonal start splits the rank in two halves, and ${rank} is odd`, { rank, help: 'Use an even rank.' });
  },
  linear: async ({ out, in: width, rank, draw, aPath, bPath }) => {
    const half = rank / 2;
    const square = gaussian([rank, rank], 1, draw, `${aPath}#basis`);
    const { q, r } = await qr(square);
    const pair = tidy(() => {
      const split = reshape(q, [half, 2, rank]);
      const rows = (parity: 0 | 1): Tensor2D => reshape(slice(split, [0, parity, 0], [half, 1, rank]), [half, rank]);
      return {
        a: mul(transpose(matMul(gaussian([width, half], 1, draw, aPath), rows(1))), 0.1) as Tensor2D,
        b: mul(matMul(gaussian([half, out], 1, draw, bPath), rows(0), true, false), 0.1) as Tensor2D,
      };
    });
    for (const tensor of [square, q, r]) tensor.dispose();
    return pair;
  },
};

const known: ReadonlyMap<unknown, Initializer> = new Map<unknown, Initializer>(
  [kaiming, normal, random, orthogonal].map((start) => [start.name, start]),
);

/** The start an option names, as PEFT's `init_lora_weights` does; undefined where there is none of the name. */
export function findInitializer(init: unknown): Initializer | undefined {
  if (typeof init === 'object') return (init as Initializer | null) ?? undefined;
  if (init === 'pissa') return pissa();
  if (init === 'olora') return olora();
  const iterations = typeof init === 'string' ? /^pissa_niter_(?<count>[1-9]\d{0,3})$/.exec(init)?.groups!['count'] : undefined;
  return iterations === undefined ? known.get(init) : pissa({ iterations: Number(iterations) });
}

/** Option values are checked before: an unknown one is a defect of ours. */
export const initializerOf = (init: boolean | string | Initializer): Initializer => findInitializer(init)!;

/**
 * Embeddings start the other way round: A = 0 and B ~ N(0, 1), since A is what a lookup reads.
 * @returns a [rank, vocabulary], b [width, rank]
 */
export function initialEmbedding(init: boolean | string | Initializer, context: InitContext): InitialPair {
  const { out: vocabulary, in: width, rank, draw, aPath, bPath } = context;
  const b = gaussian([width, rank], 1, draw, bPath);
  const a = initializerOf(init).name === false ? gaussian([rank, vocabulary], 1, draw, aPath) : (zeros([rank, vocabulary]) as Tensor2D);
  return { a, b };
}
