import type { Tensor, Tensor2D } from '@niwaki/tensor';
import type { Site } from '@niwaki/nn';

/** Sums over the rows seen so far, on the device. */
export type CollectorState = Readonly<Record<string, Tensor>>;

/** Rows of one input that count. */
export interface CountedRows {
  readonly count: number;
  /** f32 [rows, 1], 0 where a row is padding; absent where all of them count. */
  readonly mask?: Tensor2D;
}

/** A statistic of the input of a linear map, taken batch by batch, once for all sites that read one tensor. */
export interface Collector<R = unknown> {
  init(site: Site): CollectorState;
  /** Synchronous, inside the stage's tidy: new tensors, or the given ones where nothing changes. x [rows, in] f32. */
  update(state: CollectorState, x: Tensor2D, rows: CountedRows): CollectorState;
  /** Takes the state's tensors over. `count` rows were counted. */
  finish(state: CollectorState, count: number): R | Promise<R>;
  /** Frees what `finish` gave; called when the window ends. */
  release?(result: R): void;
}

/** Several statistics of one pass, by name. */
export type Collectors = Readonly<Record<string, Collector>>;
export type Collected<C extends Collectors> = { readonly [K in keyof C]: C[K] extends Collector<infer R> ? R : never };
