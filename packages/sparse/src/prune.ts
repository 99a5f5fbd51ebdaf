import { cast, checkCall, checkOptions, ConfigError, equal, sum, tidy } from '@niwaki/tensor';
import { aMethod, applyMethod, applyNames, type ApplyOptions, type Method } from '@niwaki/engine';
import { weightBytes, type Weight } from '@niwaki/weights';
import { aModel, aSelector, type Model, type Selector } from '@niwaki/nn';

export interface PruneOptions extends Omit<ApplyOptions, 'at'> {
  /** Default 'all-linear': every linear map but the head; embeddings stay too. */
  readonly at?: Selector;
}

export interface Pruned {
  /** Paths of the sites that were pruned, in the model's order. */
  readonly sites: readonly string[];
  /** What their weights hold now. */
  readonly bytes: number;
  /** Part of their entries that is 0 now. */
  readonly sparsity: number;
}

/**
 * Takes entries of the stored matrices away, site by site; they stay 0 in training and merging. Adapters, norms and biases
 * stay as they are. Either all selected sites are pruned or none (`undoBytes`).
 * @throws NotFoundError when `at` matches nothing; NumericError that names a matrix which is not finite; AbortError
 * @example await prune(model, wanda({ sparsity: 0.5 }), { calibrate: { batches } })
 */
export async function prune(model: Model, method: Method, options: PruneOptions = {}): Promise<Pruned> {
  checkOptions('prune', options, applyNames);
  const { at = 'all-linear' } = options;
  checkCall("prune(model, magnitude(), { at: 'all-linear' })", { model: [model, aModel], method: [method, aMethod], at: [at, aSelector] });
  if (method.makes !== 'weight') {
    throw new ConfigError(`prune takes a method that makes weights; '${method.kind}' makes an ${method.makes}`, {
      method: method.kind,
      help: 'Adapters are put on with adapt().',
    });
  }
  const { made } = await applyMethod(model, method, { ...options, at });
  let [bytes, entries, zeros] = [0, 0, 0];
  for (const { weight } of made.values()) {
    bytes += weightBytes(weight!);
    entries += weight!.shape[0] * weight!.shape[1];
    zeros += await zerosOf(weight!);
  }
  return { sites: [...made.keys()], bytes, sparsity: zeros / entries };
}

/** Counted on the device row by row: f32 counts a row exactly. */
async function zerosOf(weight: Weight): Promise<number> {
  const rows = tidy(() => sum(cast(equal(weight.dense(), 0), 'float32'), 1));
  const counts = await rows.data();
  rows.dispose();
  return (counts as Float32Array).reduce((total, count) => total + count, 0);
}
