import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import { fingerprintField } from '../fingerprint.ts';
import { lora } from '../lora.ts';
import type { LoraSettings } from '../lora-options.ts';
import { defaultTargetsOf } from '../targets.ts';
import { UnsupportedFieldError } from './errors.ts';
import type { PeftFamily } from './family.ts';

const names = v.union([v.string(), v.array(v.string())]);
const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const alpha = v.pipe(
  v.number(),
  v.finite(),
  v.check((value) => value !== 0, 'must not be 0: the adapter would do nothing'),
);
const layer = v.pipe(v.number(), v.integer(), v.minValue(0));
const flag = v.boolean();

/** Fields that become options. Null and absent mean the default. */
const optionFields = {
  r: v.nullish(count),
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
  target_modules: v.nullish(names),
  exclude_modules: v.nullish(names),
  modules_to_save: v.nullish(v.array(v.string())),
  layers_to_transform: v.nullish(v.union([layer, v.array(layer)])),
  layers_pattern: v.nullish(names),
  rank_pattern: v.nullish(v.record(v.string(), count), {}),
  alpha_pattern: v.nullish(v.record(v.string(), alpha), {}),
  trainable_token_indices: v.nullish(v.union([v.array(layer), v.record(v.string(), v.array(layer))])),
  init_lora_weights: v.nullish(v.union([flag, v.string()]), true),
};

/** Fields that are kept for the next reader. */
const fileFields = {
  base_model_name_or_path: v.nullish(v.string()),
  revision: v.nullish(v.string()),
  task_type: v.nullish(v.picklist(['SEQ_CLS', 'SEQ_2_SEQ_LM', 'CAUSAL_LM', 'TOKEN_CLS', 'QUESTION_ANS', 'FEATURE_EXTRACTION'])),
  auto_mapping: v.nullish(v.record(v.string(), v.unknown())),
  peft_version: v.nullish(v.string()),
  fan_in_fan_out: v.nullish(flag),
  loftq_config: v.nullish(v.record(v.string(), v.unknown())),
  eva_config: v.unknown(),
  velora_config: v.unknown(),
  megatron_config: v.unknown(),
  [fingerprintField]: v.nullish(v.string()),
  megatron_core: v.nullish(v.string()),
  qalora_group_size: v.nullish(v.number()),
};

const schema = v.looseObject({ peft_type: v.string(), inference_mode: v.nullish(flag), ...optionFields, ...fileFields });

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
const ignored: ReadonlySet<string> = new Set(['runtime_config', 'corda_config', 'lora_ga_config']);

const defaults: { readonly [field: string]: Json } = {
  alora_invocation_tokens: null,
  arrow_config: null,
  auto_mapping: null,
  base_model_name_or_path: null,
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  fan_in_fan_out: false,
  inference_mode: true,
  kasa_config: null,
  layer_replication: null,
  loftq_config: {},
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  monteclora_config: null,
  peft_type: 'LORA',
  peft_version: '0.21.0',
  qalora_group_size: 16,
  revision: null,
  target_parameters: null,
  task_type: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
};

const isOff = (value: Json | undefined): boolean =>
  value === undefined || value === null || value === false || (typeof value === 'object' && Object.keys(value).length === 0);

/** `peft_type: LORA`, with rsLoRA and DoRA. */
export const loraFamily: PeftFamily = {
  peftType: 'LORA',
  read: (json, model, warn) => {
    const fields = refused.filter((field) => !isOff(json[field]));
    if (fields.length > 0) {
      throw new UnsupportedFieldError(
        `adapter_config.json asks for ${fields.join(', ')}, which changes the result and is not served here`,
        {
          fields,
          help: 'Convert the adapter to a plain LoRA first.',
        },
      );
    }
    const config = validate(schema, json, 'adapter_config.json');
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
    const known = new Set([...Object.keys(schema.entries), ...refused, ...ignored]);
    const unknown = Object.keys(json).filter((field) => !known.has(field) && json[field] !== null);
    if (unknown.length > 0)
      warn('unknown-field', `adapter_config.json has fields unknown here, which are ignored: ${unknown.join(', ')}`, unknown);
    if (config.lora_alpha == null)
      warn('default-field', "adapter_config.json has no lora_alpha: PEFT's default of 8 is taken", ['lora_alpha']);
    const given = <T>(name: string, value: T | null | undefined): { readonly [name: string]: T } =>
      value == null ? {} : { [name]: value };
    const method = lora({
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
    });
    const kept = Object.fromEntries(Object.keys(fileFields).flatMap((field) => (json[field] == null ? [] : [[field, json[field]]])));
    return {
      method,
      targets: config.target_modules ?? defaultTargetsOf(model.info.config['model_type']),
      fields: { ...kept, ...(start === 'eva' && { init_lora_weights: 'eva' }) },
      statesRank: config.r != null,
    };
  },
  write: ({ method, targets, fields, base }) => {
    const settings = method.targeting as LoraSettings;
    const { init } = settings;
    const listed = (value: unknown): Json => (value === undefined ? null : (value as Json));
    const start = typeof init === 'object' ? init.name : init;
    return {
      ...defaults,
      base_model_name_or_path: base,
      r: settings.rank,
      lora_alpha: settings.alpha,
      lora_dropout: settings.dropout,
      use_rslora: settings.rslora,
      use_dora: settings.dora,
      lora_bias: settings.loraBias,
      bias: settings.bias,
      rank_pattern: settings.rankPattern,
      alpha_pattern: settings.alphaPattern,
      target_modules: targets,
      exclude_modules: listed(settings.excludeModules),
      layers_to_transform: listed(settings.layersToTransform),
      layers_pattern: listed(settings.layersPattern),
      modules_to_save: listed(settings.modulesToSave),
      trainable_token_indices: listed(settings.trainableTokens),
      // What other starts left of the base is no matter of their name: the fingerprint among the fields says which one it is.
      init_lora_weights: plainStarts.has(start) || method.repeatable ? (start as Json) : true,
      ...(fields as { readonly [field: string]: Json }),
    };
  },
};
