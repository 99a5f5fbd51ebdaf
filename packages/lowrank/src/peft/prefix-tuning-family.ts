import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import { prefixTuning, type PrefixTuningOptions } from '../prefix-tuning.ts';
import { commonDefaults, commonFields, keptFields, refuseFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const fileFields = {
  ...commonFields,
  token_dim: v.nullish(count),
  num_attention_heads: v.nullish(count),
  encoder_hidden_size: v.nullish(count),
  prefix_projection: v.nullish(v.boolean()),
};
const schema = v.looseObject({
  peft_type: v.string(),
  num_virtual_tokens: count,
  num_layers: v.nullish(count),
  num_transformer_submodules: v.nullish(v.literal(1)),
  init_weights: v.nullish(v.literal('zero')),
  modules_to_save: v.nullish(v.null()),
  ...fileFields,
});

/** `peft_type: PREFIX_TUNING`: files hold the keys and values themselves, also where Python trained a projection. */
export const prefixTuningFamily: PeftFamily = {
  peftType: 'PREFIX_TUNING',
  read: (json, model, warn) => {
    refuseFields(json, ['modules_to_save']);
    const config = validate(schema, json, 'adapter_config.json');
    warnUnknown(json, Object.keys(schema.entries), warn);
    const sites = model.sites(() => true, { points: ['attention'] });
    return {
      method: prefixTuning({ virtualTokens: config.num_virtual_tokens, init: config.init_weights ?? 'normal' }),
      targets: sites.map(({ path }) => path),
      fields: keptFields(json, Object.keys(fileFields)),
      statesRank: false,
    };
  },
  write: ({ method, sites, fields, base }) => {
    const { virtualTokens, init } = method.options as unknown as Required<PrefixTuningOptions>;
    return {
      ...commonDefaults,
      base_model_name_or_path: base,
      peft_type: 'PREFIX_TUNING',
      modules_to_save: null,
      num_virtual_tokens: virtualTokens,
      num_layers: sites.size,
      num_transformer_submodules: 1,
      init_weights: init === 'zero' ? 'zero' : null,
      prefix_projection: false,
      ...(fields as { readonly [field: string]: Json }),
      // Python decides by it which class reads the file.
      task_type: (fields['task_type'] ?? 'CAUSAL_LM') as Json,
    };
  },
};
