import { contentHash, type Json } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import type { ApplyOptions, Made, Method } from './method.ts';

/** A one-shot method that replaced stored matrices of a model: what tells it from another one. */
export interface BaseChange {
  readonly kind: string;
  readonly options: { readonly [name: string]: Json };
  /** Patterns as they were given; for a predicate the paths that it took. */
  readonly at: string | readonly string[];
  readonly exclude?: string | readonly string[];
  /** The block that a walk went on from. */
  readonly from?: string;
  /** Names the batches that it looked at. */
  readonly calibration?: string;
}

const changes = new WeakMap<Model, readonly BaseChange[]>();

/**
 * The one-shot methods that were applied to a model since it was loaded, in order, as far as they replaced stored matrices.
 * A checkpoint names them, so that a run goes on upon the same base only.
 */
export const baseChanges = (model: Model): readonly BaseChange[] => changes.get(model) ?? [];

/** Reads calibration batches back: 12 bytes a token. */
export async function recordChange(
  model: Model,
  { kind, options }: Pick<Method, 'kind' | 'options'>,
  { at, exclude, calibrate }: Pick<ApplyOptions, 'at' | 'exclude' | 'calibrate'>,
  made: ReadonlyMap<string, Made>,
): Promise<void> {
  const asGiven = typeof at !== 'function' && typeof exclude !== 'function';
  const change: BaseChange = {
    kind,
    options,
    at: asGiven ? at : [...made.keys()],
    ...(asGiven && exclude !== undefined && { exclude }),
    ...(calibrate?.from !== undefined && { from: calibrate.from }),
    ...(calibrate && { calibration: await calibrationHash(calibrate.batches) }),
  };
  changes.set(model, [...baseChanges(model), change]);
}

/** Names calibration batches by their numbers, as `BaseChange.calibration` does. Reads them back. */
export async function calibrationHash(batches: readonly Batch[]): Promise<string> {
  const hash = contentHash();
  for (const batch of batches) {
    for (const name of Object.keys(batch).sort()) {
      const value = batch[name];
      if (value === undefined) continue;
      const numbers = 'dtype' in value ? await value.data() : value;
      hash.text(name);
      hash.text('dtype' in value ? value.shape.join() : '');
      hash.words(wordsOf(numbers));
    }
  }
  return hash.digest();
}

/** Whole numbers as they are, others by their f32 bits. */
function wordsOf(numbers: ArrayLike<number>): Int32Array {
  if (numbers instanceof Int32Array) return numbers;
  const floats = Float32Array.from(numbers);
  return new Int32Array(floats.buffer);
}
