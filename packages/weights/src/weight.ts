import type { Json, Noise, Parameter, Range, Tensor1D, Tensor2D } from '@niwaki/tensor';
import type { Call } from './call.ts';

/**
 * How a linear map's matrix (out, in) is stored and applied. Everything stored is one of `parts`, so bytes, saving,
 * hashing, training and perturbing are generic over the formats.
 */
export interface Weight {
  readonly kind: string;
  readonly options: Json;
  readonly shape: readonly [out: number, in_: number];
  readonly parts: Readonly<Record<string, Parameter>>;
  /** x·Wᵀ for x [rows, in], with its own backward; keeps x only if a part trains or its gradient is wanted. */
  apply(x: Tensor2D, call: Call): Tensor2D;
  /** f32 rows [from, to) of W (default all): a new tensor, for norms, transcoding and decompositions. */
  dense(rows?: Range): Tensor2D;
  /** Rows by id [n, in]: an embedding's lookup. ids [n] int32. */
  lookup?(ids: Tensor1D, call: Call): Tensor2D;
  /** The whole matrix as one trainable parameter. */
  readonly matrix?: Parameter;
  /** The same format again with another matrix; absent = never. */
  encode?(dense: Tensor2D, path: string, noise?: Noise): Promise<Weight>;
  /** `encode` loses nothing. */
  readonly exact?: boolean;
  /** Some rows, in the given order, in the same format. */
  take?(rows: Int32Array, path: string): Promise<Weight>;
  /** A form that is being fitted, as it will be stored: new parts, and this one stays. */
  settle?(): Promise<Weight>;
  readonly gradient?: 'exact' | 'surrogate';
}

/** Matrices of one shape and format, stored together: the experts of a layer. */
export interface WeightStack {
  readonly kind: 'stack';
  readonly options: Json;
  readonly count: number;
  /** Of one matrix. */
  readonly shape: readonly [out: number, in_: number];
  readonly parts: Readonly<Record<string, Parameter>>;
  /** All matrices as one trainable parameter [count, out, in]. */
  readonly matrix?: Parameter;
  /** A copy of one matrix as a weight of its own, the caller's to dispose. Its path is the stack's with the number behind it, unless another is given. */
  at(i: number, path?: string): Weight;
  /**
   * x·Wᵀ with the matrix of its run for each row (`groupedMatMul`), with its own backward.
   * @param x [rows, in], rows in the order of their matrices
   * @param runs int32 [count + 1]: rows [runs[e], runs[e + 1]) meet matrix e; rows outside of them give zeros
   */
  applyGrouped(x: Tensor2D, runs: Tensor1D, call: Call): Tensor2D;
}

/** Bytes a weight, or whatever else is stored in parts, holds on the device. */
export const weightBytes = ({ parts }: Pick<Weight, 'parts'>): number => Object.values(parts).reduce((sum, part) => sum + part.bytes(), 0);

export function disposeWeight({ parts }: Pick<Weight, 'parts'>): void {
  for (const part of Object.values(parts)) part.dispose();
}
