import * as v from 'valibot';
import {
  checkCount,
  checkOneOf,
  checkOptions,
  ConfigError,
  createDraw,
  denseParameter,
  noise,
  slice,
  StateError,
  tidy,
  zeros,
  type Json,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import type { Adapter, Model, Site } from '@niwaki/nn';
import { adapterFile, wholeCount, type AdapterFile, type AdapterMethod, type Binding } from '@niwaki/peft';

export interface PrefixTuningOptions {
  /** Rows of keys and values before those of the tokens, in every layer. Default 20. */
  readonly virtualTokens?: number;
  /** Default 'normal': N(0, 1), as in PEFT. 'zero': keys and values 0, which only take a share of the attention away. */
  readonly init?: 'normal' | 'zero';
}

const slot = 'prompt_embeddings';

/**
 * Trained keys and values in front of those of the tokens, in every layer (Li & Liang 2021, without the projection that
 * PEFT can train them through: its files hold what comes out). Not rotated; tokens take the positions after them. Trains
 * 2 · virtualTokens · kvHeads · headSize numbers a layer, 4 bytes each, and holds as many in the cache of a generation. It
 * goes to every attention. Not mergeable.
 * @throws ConfigError for an option out of range
 * @example await adapt(model, prefixTuning({ virtualTokens: 16 }), { at: '**.self_attn' });
 */
export function prefixTuning(options: PrefixTuningOptions = {}): AdapterMethod {
  const settings = prefixSettings(options);
  const { virtualTokens: count, init } = settings;
  const shared = {
    kind: 'prefix-tuning',
    options: settings as unknown as { readonly [name: string]: Json },
    traits: {},
    makes: 'adapter' as const,
    points: ['attention'] as const,
  };
  const shapeFor = (sites: readonly Site[], model: Model): [number, number] => [count, 2 * sites.length * widthOf(model, sites)];
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method => {
    let adapters: ReadonlyMap<string, Adapter> = new Map();
    return defineMethod({
      ...shared,
      plan: async (sites, model) => {
        refusePart(sites, model);
        const shape = shapeFor(sites, model);
        const value = init === 'zero' ? zeros(shape) : tidy(() => noise(shape, draw.at(`${pathOf(name)}#init`), 'gaussian'));
        adapters = prefixes(sites, value, name);
        return {};
      },
      make: async ({ path }) => ({ adapter: adapters.get(path)! }),
    });
  };
  return {
    ...bind({ name: 'default', draw: createDraw(0, 0) }),
    file: prefixTuningFile,
    targeting: {},
    slots: [],
    stored: () => ({}),
    rankAt: () => undefined,
    shared: {
      slots: [slot],
      stored: (sites, model) => ({ [slot]: shapeFor(sites, model) }),
      restore: (sites, tensors, { name }) => prefixes(sites, tensors.get(slot)!, name),
    },
    fileFields: (model) => {
      const { config } = model.info;
      const width = widthOf(
        model,
        model.sites(() => true, { points: ['attention'] }),
      );
      return {
        token_dim: width,
        encoder_hidden_size: width,
        num_attention_heads: config['num_key_value_heads'] ?? config['num_attention_heads'],
      };
    },
    bind,
    restore: () => {
      throw new StateError('internal: a prefix is restored for all layers at once');
    },
  };
}

/** `peft_type: PREFIX_TUNING`: files hold the keys and values themselves, also where Python trained a projection. */
export const prefixTuningFile: AdapterFile = adapterFile({
  peftType: 'PREFIX_TUNING',
  fields: {
    num_virtual_tokens: wholeCount,
    num_layers: v.nullish(wholeCount),
    num_transformer_submodules: v.nullish(v.literal(1)),
    init_weights: v.nullish(v.literal('zero')),
    modules_to_save: v.nullish(v.null()),
  },
  kept: {
    token_dim: v.nullish(wholeCount),
    num_attention_heads: v.nullish(wholeCount),
    encoder_hidden_size: v.nullish(wholeCount),
    prefix_projection: v.nullish(v.boolean()),
  },
  refused: ['modules_to_save'],
  targets: 'all',
  make: ({ num_virtual_tokens: virtualTokens, init_weights: init }) => prefixTuning({ virtualTokens, init: init ?? 'normal' }),
  write: ({ method, sites }) => {
    const { virtualTokens, init } = method.options as unknown as Required<PrefixTuningOptions>;
    return {
      modules_to_save: null,
      num_virtual_tokens: virtualTokens,
      num_layers: sites.size,
      num_transformer_submodules: 1,
      init_weights: init === 'zero' ? 'zero' : null,
      prefix_projection: false,
      // Python decides by it which class reads the file.
      task_type: 'CAUSAL_LM',
    };
  },
});

function prefixSettings(options: PrefixTuningOptions): Required<PrefixTuningOptions> {
  checkOptions('prefixTuning', options, ['virtualTokens', 'init']);
  const { virtualTokens = 20, init = 'normal' } = options;
  checkCount('prefixTuning', 'virtualTokens', virtualTokens);
  checkOneOf('prefixTuning', 'init', init, ['normal', 'zero']);
  return { virtualTokens, init };
}

const pathOf = (name: string): string => `${slot}.${name}`;

/** kvHeads · headSize: what the first layer's keys have. */
function widthOf(model: Model, [first]: readonly Site[]): number {
  const path = `${first!.path}.k_proj`;
  const [keys] = model.sites((site) => site.path === path);
  return keys!.weight!.shape[0];
}

/** Layers without a prefix would see the tokens at other positions than the rest, and no file can say it. */
function refusePart(sites: readonly Site[], model: Model): void {
  const chosen = new Set(sites);
  const left = model.sites(() => true, { points: ['attention'] }).filter((site) => !chosen.has(site));
  if (left.length === 0) return;
  throw new ConfigError(`a prefix goes to every layer, and '${left[0]!.path}' is not among the targets`, {
    missing: left.map(({ path }) => path),
    help: "Choose at: '**.self_attn'.",
  });
}

/** One parameter [count, 2 · layers · width] for all layers: of each row first the key, then the value of the first layer, … */
function prefixes(sites: readonly Site[], value: Tensor, name: string): ReadonlyMap<string, Adapter> {
  const parameter = denseParameter(pathOf(name), value, { role: 'prompt', trainable: true });
  return new Map(sites.map(({ path }, layer) => [path, prefixAt(parameter, { layer, layers: sites.length })]));
}

function prefixAt(parameter: Parameter, { layer, layers }: { layer: number; layers: number }): Adapter {
  const [count, columns] = parameter.shape as [number, number];
  const width = columns / (2 * layers);
  const part = (value: Tensor, index: number): Tensor2D => slice(value, [0, index * width], [count, width]) as Tensor2D;
  return {
    kind: 'prefix-tuning',
    point: 'attention',
    parameters: { [slot]: parameter },
    apply: (x, next) => next(x),
    prefix: {
      count,
      keys: (call) => part(call.value(parameter), 2 * layer),
      values: (call) => part(call.value(parameter), 2 * layer + 1),
    },
    startsFrom: 'elsewhere',
  };
}
