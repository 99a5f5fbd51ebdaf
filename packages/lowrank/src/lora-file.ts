import * as v from 'valibot';
import {
  adapterFile,
  defaultTargetsOf,
  fingerprintField,
  layerNumbers,
  moduleNames,
  UnsupportedFieldError,
  wholeCount,
  type AdapterFile,
  type AdapterMethod,
  type CheckedFields,
  type Warn,
} from '@niwaki/peft';
import type { Json } from '@niwaki/tensor';
import type { LoraOptions, LoraSettings } from './lora-options.ts';

const alpha = v.pipe(
  v.number(),
  v.finite(),
  v.check((value) => value !== 0, 'must not be 0: the adapter would do nothing'),
);
const layer = v.pipe(v.number(), v.integer(), v.minValue(0));
const flag = v.boolean();

/** Fields that become options. Null and absent mean the default. */
const optionFields = {
  r: v.nullish(wholeCount),
  lora_alpha: v.nullish(alpha),
  lora_dropout: v.nullish(
    v.pipe(
      v.number(),
      v.minValue(0),
      v.check((value) => value < 1, 'must be below 1'),
    ),
    0,
  ),
  use_rslora: v.nullish(flag, false),
  use_dora: v.nullish(flag, false),
  lora_bias: v.nullish(flag, false),
  bias: v.nullish(v.picklist(['none', 'all', 'lora_only']), 'none'),
  exclude_modules: v.nullish(moduleNames),
  modules_to_save: v.nullish(v.array(v.string())),
  layers_to_transform: v.nullish(layerNumbers),
  layers_pattern: v.nullish(moduleNames),
  rank_pattern: v.nullish(v.record(v.string(), wholeCount), {}),
  alpha_pattern: v.nullish(v.record(v.string(), alpha), {}),
  trainable_token_indices: v.nullish(v.union([v.array(layer), v.record(v.string(), v.array(layer))])),
  init_lora_weights: v.nullish(v.union([flag, v.string()]), true),
};

/** Fields that are kept for the next reader. */
const fileFields = {
  fan_in_fan_out: v.nullish(flag),
  loftq_config: v.nullish(v.record(v.string(), v.unknown())),
  eva_config: v.unknown(),
  velora_config: v.unknown(),
  megatron_config: v.unknown(),
  [fingerprintField]: v.nullish(v.string()),
  megatron_core: v.nullish(v.string()),
  qalora_group_size: v.nullish(v.number()),
};

/** Fields that change what the adapter computes; each is off at null, false or nothing in it. */
const refused = [
  'use_qalora',
  'alora_invocation_tokens',
  'layer_replication',
  'use_bdlora',
  'arrow_config',
  'kasa_config',
  'monteclora_config',
  'target_parameters',
  'ensure_weight_tying',
];

/** Only the start of training differs: a stored adapter is what it is. */
const plainStarts: ReadonlySet<unknown> = new Set([true, false, 'gaussian', 'orthogonal', 'eva']);

/** The file fits what the start left of the base, which a reader makes again. */
const repeatableStarts: ReadonlySet<unknown> = new Set(['pissa', 'olora']);

/** Known, without effect on a stored adapter, and not kept. */
const ignored = ['corda_config', 'lora_ga_config'];

/** What Python writes beside the options. */
const defaults: { readonly [field: string]: Json } = {
  alora_invocation_tokens: null,
  arrow_config: null,
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  fan_in_fan_out: false,
  kasa_config: null,
  layer_replication: null,
  loftq_config: {},
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  monteclora_config: null,
  qalora_group_size: 16,
  target_parameters: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
};

/** `peft_type: LORA`, with rsLoRA and DoRA. @param make the method itself */
export const loraFileOf = (make: (options: LoraOptions) => AdapterMethod): AdapterFile =>
  adapterFile({
    peftType: 'LORA',
    fields: optionFields,
    kept: fileFields,
    keep: ({ init_lora_weights: start }) => (start === 'eva' ? ['init_lora_weights'] : []),
    ignored,
    refused,
    targets: ({ info }) => defaultTargetsOf(info.config['model_type']),
    statesRank: ({ r }) => r != null,
    make: (config, { warn }) => make(optionsOf(config, warn)),
    write: ({ method }) => {
      const settings = method.targeting as LoraSettings;
      const { init } = settings;
      const listed = (value: unknown): Json => (value === undefined ? null : (value as Json));
      const start = typeof init === 'object' ? init.name : init;
      return {
        ...defaults,
        r: settings.rank,
        lora_alpha: settings.alpha,
        lora_dropout: settings.dropout,
        use_rslora: settings.rslora,
        use_dora: settings.dora,
        lora_bias: settings.loraBias,
        bias: settings.bias,
        rank_pattern: settings.rankPattern,
        alpha_pattern: settings.alphaPattern,
        exclude_modules: listed(settings.excludeModules),
        layers_to_transform: listed(settings.layersToTransform),
        layers_pattern: listed(settings.layersPattern),
        modules_to_save: listed(settings.modulesToSave),
        trainable_token_indices: listed(settings.trainableTokens),
        // What other starts left of the base is no matter of their name: the fingerprint among the fields says which one it is.
        init_lora_weights: plainStarts.has(start) || method.repeatable ? (start as Json) : true,
      };
    },
  });

/** The options of `lora` that a config asks for. @throws UnsupportedFieldError for a start that fits another base */
function optionsOf(config: CheckedFields<typeof optionFields>, warn: Warn): LoraOptions {
  const start = config.init_lora_weights;
  if (!plainStarts.has(start) && !repeatableStarts.has(start)) {
    throw new UnsupportedFieldError(
      `init_lora_weights ${JSON.stringify(start)} rewrites the base weights, so this file fits another base than yours`,
      {
        fields: ['init_lora_weights'],
        init: start,
        help: 'Save it in Python with path_initial_model_for_weight_conversion, which makes a plain LoRA of twice the rank.',
      },
    );
  }
  if (config.lora_alpha == null)
    warn('default-field', "adapter_config.json has no lora_alpha: PEFT's default of 8 is taken", ['lora_alpha']);
  const given = <T>(name: string, value: T | null | undefined): { readonly [name: string]: T } => (value == null ? {} : { [name]: value });
  return {
    ...given('rank', config.r),
    ...given('alpha', config.lora_alpha),
    dropout: config.lora_dropout,
    rslora: config.use_rslora,
    dora: config.use_dora,
    loraBias: config.lora_bias,
    bias: config.bias,
    rankPattern: config.rank_pattern,
    alphaPattern: config.alpha_pattern,
    ...given('excludeModules', config.exclude_modules),
    ...given('layersToTransform', config.layers_to_transform),
    ...given('layersPattern', config.layers_pattern),
    ...given('modulesToSave', config.modules_to_save),
    ...given('trainableTokens', config.trainable_token_indices),
    init: start === 'eva' ? true : (start as Exclude<LoraSettings['init'], object>),
  };
}
