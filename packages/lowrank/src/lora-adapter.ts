import type { Parameter } from '@niwaki/tensor';
import type { RewritingAdapter, ScalableAdapter } from '@niwaki/peft';
import type { Adapter, Point } from '@niwaki/nn';

export interface LoraAdapter extends ScalableAdapter, RewritingAdapter {
  readonly rank: number;
  /** Changes when the values are swapped for those of another adapter. */
  alpha: number;
  readonly rslora: boolean;
  /** strength·alpha/rank, or over sqrt(rank). */
  readonly scale: number;
  /**
   * Where the start rewrote the base and training can be told from it: what the pair was then, [rank, in] and [out, rank].
   * Frozen, of the role 'statistic': no file holds them.
   */
  readonly start?: StartPair;
}

export interface StartPair {
  readonly a: Parameter;
  readonly b: Parameter;
}

export interface LoraSpec {
  /** The site's path. */
  readonly path: string;
  readonly point: Point;
  /** The adapter set's name: it is part of the parameters' paths, and of no file. */
  readonly name: string;
  readonly rank: number;
  readonly alpha: number;
  readonly rslora: boolean;
  /** Probability that an entry of the input is dropped in training. Embeddings have none. */
  readonly dropout: number;
  /** A bias that the same set trains in place of the site's. */
  readonly ownBias?: Parameter | undefined;
}

export const isLora = (adapter: Adapter): adapter is LoraAdapter => 'rank' in adapter && 'alpha' in adapter;
