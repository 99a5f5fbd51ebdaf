import {
  ConfigError,
  createDraw,
  denseParameter,
  noise,
  StateError,
  tidy,
  type Draw,
  type Json,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import { checkIds, type Adapter, type Model, type Site } from '@niwaki/nn';
import type { AdapterMethod, Binding } from './adapter-method.ts';
import { currentRows } from './trainable-tokens.ts';

export interface PromptTuningOptions {
  /** Rows before every sequence; default 20, or as many as `init` lists. */
  readonly virtualTokens?: number;
  /** Default 'normal': N(0, 1), as in PEFT. 'vocabulary': rows of tokens drawn with the seed. Ids: the rows of these, in turn. */
  readonly init?: 'normal' | 'vocabulary' | readonly number[];
}

const slot = 'prompt_embeddings';

/**
 * Trained rows before the embeddings of every sequence (Lester et al. 2021): a prompt that need not be words. It takes
 * positions, key-value cache and compute as tokens do; logits, losses and generation count the caller's tokens alone.
 * Trains virtualTokens · hidden numbers, 4 bytes each. Not mergeable.
 * @throws ConfigError for an option out of range; DataError for an id outside the vocabulary
 * @example await adapt(model, promptTuning({ init: tokenizer.encode('Answer as a pirate:') }), { at: 'embed_tokens' });
 */
export function promptTuning(options: PromptTuningOptions = {}): AdapterMethod {
  const settings = promptSettings(options);
  const { virtualTokens: count } = settings;
  const shapeFor = ([site]: readonly Site[]): [number, number] => [count, site!.weight!.shape[1]];
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method =>
    defineMethod({
      kind: 'prompt-tuning',
      options: settings as unknown as { readonly [name: string]: Json },
      traits: {},
      makes: 'adapter',
      points: ['embedding'],
      validate: ({ path, weight }) => {
        const [vocabularySize] = weight!.shape;
        if (typeof settings.init !== 'string') checkIds(settings.init, { vocabularySize, where: `promptTuning at '${path}'` });
      },
      make: async (site) => ({ adapter: promptAt(await startOf(site, shapeFor([site]), settings.init, draw), name) }),
    });
  return {
    ...bind({ name: 'default', draw: createDraw(0, 0) }),
    peftType: 'PROMPT_TUNING',
    targeting: {},
    slots: [],
    stored: () => ({}),
    rankAt: () => undefined,
    shared: {
      slots: [slot],
      stored: (sites) => ({ [slot]: shapeFor(sites) }),
      restore: (sites, tensors, { name }) => new Map([[sites[0]!.path, promptAt(tensors.get(slot)!, name)]]),
    },
    fileFields: ({ info: { config, hiddenSize } }: Model) => ({
      token_dim: hiddenSize,
      num_attention_heads: config['num_attention_heads'],
      num_layers: config['num_hidden_layers'],
    }),
    bind,
    restore: () => {
      throw new StateError('internal: a prompt is restored from tensors without a module');
    },
  };
}

type PromptSettings = Required<PromptTuningOptions>;

function promptSettings({
  init = 'normal',
  virtualTokens = typeof init === 'string' ? 20 : init.length,
}: PromptTuningOptions): PromptSettings {
  if (!(Number.isInteger(virtualTokens) && virtualTokens >= 1)) {
    throw new ConfigError(`promptTuning: virtualTokens must be an integer of at least 1, got ${virtualTokens}`, {
      field: 'virtualTokens',
      given: virtualTokens,
    });
  }
  const known = typeof init === 'string' ? ['normal', 'vocabulary'].includes(init) : init.length > 0;
  if (!known) {
    throw new ConfigError(`promptTuning: init must be 'normal', 'vocabulary' or token ids, got ${JSON.stringify(init)}`, {
      field: 'init',
      given: init,
    });
  }
  return { virtualTokens, init };
}

const pathOf = (name: string): string => `${slot}.${name}`;

async function startOf(site: Site, shape: [number, number], init: PromptSettings['init'], draw: Draw): Promise<Tensor> {
  const [count] = shape;
  if (init === 'normal') return tidy(() => noise(shape, draw.at(`${slot}#init`), 'gaussian'));
  if (init !== 'vocabulary')
    return currentRows(
      site,
      Array.from({ length: count }, (_, i) => init[i % init.length]!),
    );
  const drawn = tidy(() => noise([count], draw.at(`${slot}#init`), 'uniform'));
  const points = await drawn.data();
  drawn.dispose();
  const [vocabulary] = site.weight!.shape;
  return currentRows(
    site,
    Array.from(points, (point) => Math.min(Math.floor(point * vocabulary), vocabulary - 1)),
  );
}

/** @param value [count, hidden]; the adapter takes it over */
function promptAt(value: Tensor, name: string): Adapter {
  const parameter = denseParameter(pathOf(name), value, { role: 'prompt', trainable: true });
  return {
    kind: 'prompt-tuning',
    point: 'embedding',
    parameters: { [slot]: parameter },
    apply: (x, next) => next(x),
    prompt: { count: value.shape[0]!, rows: (call) => call.value(parameter) as Tensor2D },
    startsFrom: 'elsewhere',
  };
}
