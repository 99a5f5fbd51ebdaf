import { checkOptions, createDraw, denseParameter, mul, noise, ones, tidy, zeros, type Tensor } from '@niwaki/tensor';
import { denseWeight } from '@niwaki/weights';
import type { Model } from './graph.ts';
import { createModel, type HfConfig } from './families.ts';

export interface InitializeOptions {
  readonly seed: number | bigint;
  readonly source?: string;
  /** Whether the parameters are trainable; default true. */
  readonly trainable?: boolean;
}

// What writes into the residual stream: two maps a layer.
const residual = /\.(o_proj|down_proj)\.weight$/;

/**
 * A model with random weights, all f32: normal with the config's `initializer_range` (default 0.02), the
 * two projections of each layer that write into the residual stream scaled by 1/sqrt(2 · layers) (GPT-2, section 2.3),
 * norms 1, biases 0. The same seed gives the same numbers on every device.
 */
export function initializeModel(config: HfConfig, options: InitializeOptions): Promise<Model> {
  checkOptions('initializeModel', options, ['seed', 'source', 'trainable']);
  const { seed, source = 'initialized', trainable = true } = options;
  const draw = createDraw(seed, 0);
  const std = typeof config['initializer_range'] === 'number' ? config['initializer_range'] : 0.02;
  const layers = Number(config['num_hidden_layers']);
  const normal = (path: string, shape: readonly number[]): Tensor =>
    tidy(() => mul(noise(shape, draw.at(`${path}#init`), 'gaussian'), residual.test(path) ? std / Math.sqrt(2 * layers) : std));
  return createModel({
    config,
    source,
    weight: async (path, shape, role) => {
      // A tied head is the embedding's own weight: there is no second one to draw.
      if (role === 'head' && config['tie_word_embeddings'] === true) return undefined;
      return denseWeight(denseParameter(path, normal(path, shape), { role, trainable }));
    },
    vector: async (path, shape, role) => denseParameter(path, role === 'norm' ? ones([...shape]) : zeros([...shape]), { role, trainable }),
  });
}
