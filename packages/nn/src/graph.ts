import type { FrozenMatrix, Parameter, Tensor, Tensor2D } from '@niwaki/tensor';
import type { ActivationQuantizer, Call, Weight } from '@niwaki/weights';
import type { Coupling } from './coupling.ts';

/** Streams between stages: 'h' [rows, width], and others where a family or method needs them. */
export type Carry = Readonly<Record<string, Tensor>>;

/** Embed, a block, the head. `run` is synchronous and pure: blockwise backprop computes it twice. What it writes is new: never a tensor of the batch or of the carry. */
export interface Stage {
  readonly path: string;
  readonly reads: readonly string[];
  readonly writes: readonly string[];
  /** Streams among `reads` that are tables and bounds: no gradient goes through them. */
  readonly constants?: readonly string[];
  /** Sites that store a weight. */
  readonly sites: readonly Site[];
  /** Everything the stage reads, adapters attached now included. */
  parameters(): readonly Parameter[];
  run(carry: Carry, call: Call): Carry;
}

export type Point = 'linear' | 'conv' | 'embedding' | 'norm' | 'attention' | 'ffn' | 'sublayer' | 'block' | 'head' | 'operand';

/**
 * A place an adapter or another weight can go. `weight` and `bias` change when the model is quantized or merged. Modules
 * around linear maps are sites without a weight: 'attention' and 'ffn' (from the normed input to what is added to the
 * residual stream), 'norm', 'block'. An adapter for a 'sublayer' fits an attention and an ffn. An 'operand' is what enters
 * a product of two activations (queries, keys, values as attention takes them), a row a head: it has an `input` at most.
 */
export interface Site {
  /** Module path, as in Hugging Face: `model.layers.0.self_attn.q_proj`. */
  readonly path: string;
  readonly point: Point;
  weight?: Weight;
  bias?: Parameter;
  /** What rounds the rows that it is given, ahead of every adapter. */
  input?: ActivationQuantizer;
  /** Sites with one id read the same tensor (q, k, v): statistics of inputs are taken once. */
  readonly inputId: string;
  /** Sites whose matrix is one stored Weight (tied embeddings): a replacement goes to all of them. */
  tiedTo?: string;
}

/** Rows put in front of every sequence, as if they were tokens: prompt tuning. */
export interface Prompt {
  readonly count: number;
  /** [count, hidden] */
  rows(call: Call): Tensor2D;
}

/** Keys and values that every query of a layer sees, in front of those of the tokens and not rotated: prefix tuning. */
export interface Prefix {
  readonly count: number;
  /** [count, kvHeads · headSize] each. */
  keys(call: Call): Tensor2D;
  values(call: Call): Tensor2D;
}

/** What an adapter is around: the adapters nearer to the base, or the base itself. */
export interface Next {
  (x: Tensor): Tensor2D;
  /** Where it is x·Wᵀ, with a bias or without, and gets no gradient: for an adapter that multiplies and adds in one op. */
  product?(): { readonly matrix: FrozenMatrix; readonly bias: Tensor | undefined } | undefined;
}

/** Middleware at a site. */
export interface Adapter {
  readonly kind: string;
  readonly point: Point;
  readonly parameters: Readonly<Record<string, Parameter>>;
  /** May call `next` with another input, under no gradient, or not at all. x and the result are [rows, width]; embeddings get ids [rows]. */
  apply(x: Tensor, next: Next, call: Call, site: Site): Tensor2D;
  /** The additive family: y = base(x) + delta(x). */
  delta?(): Weight;
  /**
   * New values for the site; neither `delta` nor `merge` = not mergeable. The base is untouched.
   * @param base the site's own weight, where adapters merged before this one already changed `weight`
   */
  merge?(weight: Weight, bias?: Parameter, base?: Weight): Promise<MergedSite>;
  /** At an embedding. Sequences grow by `count` inside the model; what leaves the last block is the caller's rows again. */
  readonly prompt?: Prompt;
  /** At an attention. Tokens take the positions after the longest prefix of their set. */
  readonly prefix?: Prefix;
  /** At a module around no map (a norm): what its own parameters are while the set is active. Of several sets the last stands. */
  readonly replaces?: Readonly<Record<string, Parameter>>;
  /**
   * A side network: stages that run behind the one that holds the site, on streams of their own names, wherever a call
   * reads the set. The parameters are read there and not at the site. Asked for once, as the set is attached.
   */
  stages?(model: Model): readonly AddedStage[];
  /** Streams of added stages that `apply` finds in `call.streams`. */
  readonly reads?: readonly string[];
  readonly startsFrom?: 'base' | 'near' | 'rewritten' | 'elsewhere';
  readonly gradient?: 'exact' | 'surrogate';
}

/** A stage that an adapter brings along. Its weights are the adapter's own parameters and no sites of the model. */
export type AddedStage = Omit<Stage, 'sites'>;

export interface MergedSite {
  /** The whole matrix, f32 [out, in]. */
  readonly matrix: Tensor2D;
  readonly bias?: Tensor;
}

/** What a user holds and what a file holds: one adapter a site, under one name. */
export interface AdapterSet {
  name: string;
  readonly method: { readonly kind: string; readonly options: object };
  readonly sites: ReadonlyMap<string, Adapter>;
  /** Whole parameters that replace the model's (PEFT's modules_to_save), by parameter path. */
  readonly replaced: ReadonlyMap<string, Parameter>;
  /** Name or path of the base model it was made for. */
  readonly base: string;
}

export type Selector = string | readonly string[] | ((site: Site) => boolean);

export interface SiteOptions {
  readonly points?: readonly Point[] | undefined;
}

export interface ModelInfo {
  readonly family: string;
  /** Hugging Face config (v4 names), as read or derived. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly vocabularySize: number;
  readonly contextLength: number;
  readonly hiddenSize: number;
  /** Name or path it was loaded from. */
  readonly source: string;
}

export interface ReplaceOptions {
  readonly keep?: boolean;
  readonly untie?: boolean;
  /** A new bias (merging may move a part of the adapter there); the old one is disposed. */
  readonly bias?: Parameter;
}

export interface Model {
  readonly info: ModelInfo;
  stages(): readonly Stage[];
  /**
   * Sites by path, glob or predicate; nothing matched is an error that lists near misses. Without `points` those that
   * store a weight; with them those of these points, modules included.
   */
  sites(at: Selector, options?: SiteOptions): readonly Site[];
  /** Which rows give what which columns read, in the model's order; none where a family does not say. */
  readonly couplings: readonly Coupling[];
  /** Every parameter by path: the base's and those of attached adapters. Tied names are one. */
  parameters(): ReadonlyMap<string, Parameter>;
  /**
   * Puts another weight at a site (and at those tied to it); the old one is disposed unless `keep`.
   * `untie`: this site alone takes it, and the config says from now on that the embeddings are not tied.
   */
  replace(path: string, weight: Weight, options?: ReplaceOptions): void;
  /**
   * Rounds what a linear map, a head or an operand is given, from now on; undefined: as it comes. The old quantizer is
   * disposed unless `keep`. `info.config` says under `niwaki.activations` what is rounded where, and `createModel` reads it.
   */
  replaceInput(path: string, input: ActivationQuantizer | undefined, options?: { readonly keep?: boolean }): void;
  /** Adapter sets by name, in the order attached. */
  readonly adapters: ReadonlyMap<string, AdapterSet>;
  /** Puts a set on. It is active at once if it is the only one; the model is as before if this throws. */
  attach(set: AdapterSet): void;
  /** Takes the set off and returns it; its tensors stay alive. */
  detach(name: string): AdapterSet;
  /** Names applied by default, in order; a View may say otherwise. Setting an unknown name throws. */
  active: readonly string[];
  /** Grows with every change of what runs: a weight, an input's rounding, adapters put on, off or active. For whoever keeps a pass. */
  readonly revision: number;
  /** Calls back once, as `dispose` begins: for whoever keeps tensors on the model's behalf. */
  whenDisposed(free: () => void): void;
  /** Frees every parameter, attached adapters' too, and what others keep for it. */
  dispose(): void;
}
