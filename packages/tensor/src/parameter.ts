import type { Scalar, Tensor, Tensor1D, Tensor2D } from './tfjs.ts';
import type { Noise } from './noise.ts';

export type Role =
  | 'matrix'
  | 'embedding'
  | 'head'
  | 'norm'
  | 'bias'
  | 'adapterA'
  | 'adapterB'
  | 'magnitude'
  | 'prompt'
  | 'router'
  | 'scale'
  | 'zero'
  | 'codebook'
  | 'factor'
  | 'values'
  | 'codes'
  | 'index'
  | 'statistic'; // never trained by gradients

export type Range = readonly [from: number, to: number];

/** One stored thing with a stable identity. Tied names are one Parameter. */
export interface Parameter {
  /** Canonical Hugging Face path. */
  readonly path: string;
  /** Logical shape: noise and masks are indexed by it, never by a packing. */
  readonly shape: readonly number[];
  readonly role: Role;
  trainable: boolean;
  /** Grows with every write: caches and prepacked copies key on it. */
  readonly version: number;
  /** Bytes held on the device. */
  bytes(): number;
  /**
   * The parameters that hold the value, where it is not stored as such (codes, scales, zeros of a matrix): what a
   * checkpoint keeps. Such a parameter has no bytes of its own, and `read` decodes into a new tensor.
   */
  readonly stored?: readonly Parameter[];
  /** The value; the store's own tensor for dense f32 and for packed words (do not dispose it). */
  read(): Tensor;
  /** Replaces the value. The parameter takes the tensor over; the old one is disposed. */
  write(value: Tensor): void;
  /** Applies an update the way its storage does, constraint last; the old value stays where `ok` is 0. */
  commit(update: Gradient, ok: Scalar, how?: Commit): void;
  readonly constraint?: Constraint;
  /** Of a parameter that holds some entries of a matrix: where these are now. */
  readonly places?: Places;
  /** How `raw` names and measures bytes that are packed words; absent where the value is its own file type. */
  readonly file?: FileType;
  /** File dtype and bytes. */
  raw(): Promise<RawTensor>;
  dispose(): void;
}

/** What a file calls a tensor of packed words, e.g. { dtype: 'U8', shape: [128, 1], bytes: 128 }. */
export interface FileType {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** Places in a matrix, one an entry of a parameter. They may change between steps. */
export interface Places {
  readonly shape: readonly [rows: number, columns: number];
  /** Row and column of each entry, int32 [entries, 2]: a new tensor. */
  read(): Tensor2D;
}

export interface Constraint {
  readonly mask?: MaskValue;
  readonly floor?: number;
  readonly box?: Range;
}

export interface Commit {
  /** Decoupled weight decay of this step: the value shrinks by (1 - decay) before the update is added. */
  readonly decay?: number;
  /** Multiplies the update as it is added, default 1: the learning rate with its sign, and what else holds for all entries alike. */
  readonly scale?: number;
  /** Where a storage that rounds by chance draws; the step gives one, `path#rounding`, where a transform does not. */
  readonly noise?: Noise;
  /** The update's tensors are the parameter's to write into: nobody reads them again. The step says so. */
  readonly owned?: boolean;
  readonly changes?: { readonly fraction: number; readonly trust?: number };
}

export interface RawTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** `bits`: 0 or 1 an entry, as f32 of the parameter's shape or as int32 words with one bit an entry, lowest first. */
export type MaskValue = { readonly below: number } | { readonly keep: number; readonly noise: Noise } | { readonly bits: Tensor };

export type Gradient =
  | { readonly kind: 'dense'; readonly value: Tensor }
  | { readonly kind: 'rows'; readonly index: Tensor1D; readonly value: Tensor }
  | {
      readonly kind: 'noise';
      readonly terms: readonly { readonly coefficient: Scalar; readonly noise: Noise; readonly mask?: MaskValue }[];
    };

/** Takes gradients as each becomes final: every use and micro-batch summed. */
export interface Sink {
  push(parameter: Parameter, gradient: Gradient): void;
}
