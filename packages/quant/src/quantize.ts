import { applyMethod, type ApplyOptions, type Method } from '@niwaki/engine';
import { ConfigError } from '@niwaki/tensor';
import { weightBytes } from '@niwaki/weights';
import type { Model, Selector } from '@niwaki/nn';

export interface QuantizeOptions extends Omit<ApplyOptions, 'at'> {
  /** Default 'all-linear': every linear map but the head; embeddings stay too. */
  readonly at?: Selector;
}

export interface Quantized {
  /** Paths of the sites that were changed, in the order they were made. */
  readonly sites: readonly string[];
  /** What was made for them holds: weights, and the steps that their inputs are rounded to. */
  readonly bytes: number;
}

/**
 * Replaces the stored weights of a model by smaller ones, site by site: float and packed copies of the whole model never
 * coexist; or rounds what is multiplied with them (`activations`). Everything else (adapters, norms, biases) stays as it is.
 * @throws NotFoundError when `at` matches nothing; NumericError that names a matrix which is not finite; AbortError
 * @example await quantize(model, nf4({ doubleQuant: true }), { at: 'all-linear' })
 */
export async function quantize(model: Model, method: Method, { at = 'all-linear', ...options }: QuantizeOptions = {}): Promise<Quantized> {
  if (method.makes === 'adapter') {
    throw new ConfigError(`quantize takes a method that makes weights; '${method.kind}' makes an ${method.makes}`, {
      method: method.kind,
      help: 'Adapters are put on with adapt().',
    });
  }
  const { made } = await applyMethod(model, method, { at, ...options });
  const stored = [...made.values()].flatMap(({ weight, input }) => [weight, input]).filter((one) => one !== undefined);
  const bytes = stored.reduce((sum, one) => sum + weightBytes(one), 0);
  return { sites: [...made.keys()], bytes };
}
