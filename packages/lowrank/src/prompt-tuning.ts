import * as v from 'valibot';
import {
  checkCount,
  checkOptions,
  createDraw,
  denseParameter,
  noise,
  outOfRange,
  StateError,
  tidy,
  type Draw,
  type Json,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import { checkIds, type Adapter, type Model, type Site } from '@niwaki/nn';
import { adapterFile, currentRows, wholeCount, type AdapterFile, type AdapterMethod, type Binding, type PeftSet } from '@niwaki/peft';

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
    file: promptTuningFile,
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

/** Of all types with virtual tokens. */
const promptFields = {
  num_virtual_tokens: wholeCount,
  num_transformer_submodules: v.nullish(v.literal(1)),
  modules_to_save: v.nullish(v.null()),
};
const promptKept = { token_dim: v.nullish(wholeCount), num_attention_heads: v.nullish(wholeCount), num_layers: v.nullish(wholeCount) };

const written = ({ method }: PeftSet): { readonly [field: string]: Json } => ({
  modules_to_save: null,
  num_virtual_tokens: (method.options as unknown as PromptSettings).virtualTokens,
  num_transformer_submodules: 1,
  // Python decides by it which class reads the file.
  task_type: 'CAUSAL_LM',
});

/** `peft_type: PROMPT_TUNING`. */
export const promptTuningFile: AdapterFile = adapterFile({
  peftType: 'PROMPT_TUNING',
  fields: promptFields,
  kept: {
    ...promptKept,
    // How Python started the rows, which a file holds as they became.
    prompt_tuning_init: v.nullish(v.picklist(['RANDOM', 'TEXT', 'SAMPLE_VOCAB'])),
    prompt_tuning_init_text: v.nullish(v.string()),
    tokenizer_name_or_path: v.nullish(v.string()),
    tokenizer_kwargs: v.nullish(v.record(v.string(), v.unknown())),
  },
  refused: ['modules_to_save'],
  targets: 'all',
  make: ({ num_virtual_tokens: virtualTokens }) => promptTuning({ virtualTokens }),
  write: (set) => ({
    ...written(set),
    // Rows of chosen tokens are RANDOM to Python: TEXT asks for the text and its tokenizer.
    prompt_tuning_init: (set.method.options as unknown as PromptSettings).init === 'vocabulary' ? 'SAMPLE_VOCAB' : 'RANDOM',
    prompt_tuning_init_text: null,
    tokenizer_name_or_path: null,
    tokenizer_kwargs: null,
  }),
});

/** `peft_type: P_TUNING` (Liu et al. 2021): read, applied, trained on and written as the rows its encoder gave. */
export const pTuningFile: AdapterFile = adapterFile({
  peftType: 'P_TUNING',
  fields: promptFields,
  kept: {
    ...promptKept,
    // Of the network that Python trained the rows through; a file holds what came out.
    encoder_dropout: v.nullish(v.number()),
    encoder_hidden_size: v.nullish(wholeCount),
    encoder_num_layers: v.nullish(wholeCount),
    encoder_reparameterization_type: v.nullish(v.picklist(['MLP', 'LSTM'])),
  },
  refused: ['modules_to_save'],
  targets: 'all',
  make: ({ num_virtual_tokens: virtualTokens }) => ({ ...promptTuning({ virtualTokens }), file: pTuningFile }),
  write: written,
});

type PromptSettings = Required<PromptTuningOptions>;

function promptSettings(options: PromptTuningOptions): PromptSettings {
  checkOptions('promptTuning', options, ['virtualTokens', 'init']);
  const { init = 'normal' } = options;
  const { virtualTokens = typeof init === 'string' ? 20 : init.length } = options;
  checkCount('promptTuning', 'virtualTokens', virtualTokens);
  const known = typeof init === 'string' ? ['normal', 'vocabulary'].includes(init) : init.length > 0;
  if (!known) throw outOfRange('promptTuning', 'init', init, "'normal', 'vocabulary' or token ids");
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
