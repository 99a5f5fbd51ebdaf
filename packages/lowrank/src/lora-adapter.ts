import { denseParameter, type Parameter, type Role, type Tensor, type Tensor2D } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { Adapter, Point } from '@niwaki/nn';

/** An adapter whose effect can be turned up and down. */
export interface ScalableAdapter extends Adapter {
  /** Factor on the adapter's own scale, default 1; not stored in files. */
  strength: number;
}

export interface LoraAdapter extends ScalableAdapter {
  readonly rank: number;
  readonly alpha: number;
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

/** A parameter of an adapter. `slot` is its PEFT name, such as `lora_A.weight`; the set's name goes in before the ending. */
export function adapterParameter(path: string, name: string, slot: string, value: Tensor, role: Role): Parameter {
  return denseParameter(parameterPath(path, name, slot), value, { role, trainable: role !== 'statistic' });
}

/** `<path>.lora_A.<name>.weight`: where PEFT itself puts the name in a live model. */
export function parameterPath(path: string, name: string, slot: string): string {
  const ending = /\.(?:weight|bias)$/.exec(slot)?.[0] ?? '';
  return `${path}.${slot.slice(0, slot.length - ending.length)}.${name}${ending}`;
}

/** Whether a value is an adapter with a strength. */
export const isScalable = (adapter: Adapter): adapter is ScalableAdapter => 'strength' in adapter;
