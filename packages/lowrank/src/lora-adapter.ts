import type { Parameter, Tensor2D } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { Adapter, Point } from '@niwaki/nn';

/** An adapter whose effect can be turned up and down. */
export interface ScalableAdapter extends Adapter {
  /** Factor on the adapter's own scale, default 1; not stored in files. */
  strength: number;
}

export interface LoraAdapter extends ScalableAdapter {
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
  /** The original matrix from the rewritten one, f32, new; absent where it is lost. */
  original?(base: Weight): Tensor2D;
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

export { adapterParameter, parameterPath } from '@niwaki/engine';

/** Whether a value is an adapter with a strength. */
export const isScalable = (adapter: Adapter): adapter is ScalableAdapter => 'strength' in adapter;
