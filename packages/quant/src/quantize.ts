import { aMethod, applyMethod, applyNames, overCodes, type ApplyOptions, type Method } from '@niwaki/engine';
import { checkCall, checkFlag, checkOptions, ConfigError } from '@niwaki/tensor';
import { weightBytes } from '@niwaki/weights';
import { aModel, aSelector, type Model, type Selector } from '@niwaki/nn';

export interface QuantizeOptions extends Omit<ApplyOptions, 'at'> {
  /** Default 'all-linear': every linear map but the head; embeddings stay too. */
  readonly at?: Selector;
  /** Matrices that are codes already are rounded once more, and keep both errors. Default false: they are refused. */
  readonly requantize?: boolean;
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
 * @throws ConfigError for matrices that are codes already, unless `requantize` is set; NotFoundError when `at` matches
 * nothing; NumericError that names a matrix which is not finite; AbortError
 * @example await quantize(model, nf4({ doubleQuant: true }), { at: 'all-linear' })
 */
export async function quantize(model: Model, method: Method, options: QuantizeOptions = {}): Promise<Quantized> {
  checkOptions('quantize', options, [...applyNames, 'requantize']);
  const { at = 'all-linear', requantize = false, ...applying } = options;
  checkFlag('quantize', 'requantize', requantize);
  checkCall("quantize(model, nf4(), { at: 'all-linear' })", { model: [model, aModel], method: [method, aMethod], at: [at, aSelector] });
  if (method.makes === 'adapter') {
    throw new ConfigError(`quantize takes a method that makes weights; '${method.kind}' makes an ${method.makes}`, {
      method: method.kind,
      help: 'Adapters are put on with adapt().',
    });
  }
  const { made } = await applyMethod(model, requantize ? overCodes(method) : method, { ...applying, at });
  const stored = [...made.values()].flatMap(({ weight, input }) => [weight, input]).filter((one) => one !== undefined);
  const bytes = stored.reduce((sum, one) => sum + weightBytes(one), 0);
  return { sites: [...made.keys()], bytes };
}
