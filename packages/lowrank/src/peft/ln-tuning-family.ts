import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import { lnTuning, type LnTuningOptions } from '../ln-tuning.ts';
import { commonDefaults, commonFields, keptFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const names = v.union([v.string(), v.array(v.string())]);
const schema = v.looseObject({
  peft_type: v.string(),
  target_modules: v.nullish(names),
  exclude_modules: v.nullish(names),
  modules_to_save: v.nullish(v.array(v.string())),
  ...commonFields,
});

/** What PEFT takes of Llama's kind where a config names no modules. */
const defaultTargets: readonly string[] = ['input_layernorm', 'post_attention_layernorm', 'norm'];

/** `peft_type: LN_TUNING`. */
export const lnTuningFamily: PeftFamily = {
  peftType: 'LN_TUNING',
  read: (json, _, warn) => {
    const config = validate(schema, json, 'adapter_config.json');
    warnUnknown(json, Object.keys(schema.entries), warn);
    const method = lnTuning({
      ...(config.exclude_modules != null && { excludeModules: config.exclude_modules }),
      ...(config.modules_to_save != null && { modulesToSave: config.modules_to_save }),
    });
    return {
      method,
      targets: config.target_modules ?? defaultTargets,
      fields: keptFields(json, Object.keys(commonFields)),
      statesRank: false,
    };
  },
  write: ({ method, targets, fields, base }) => {
    const { excludeModules, modulesToSave } = method.targeting as LnTuningOptions;
    return {
      ...commonDefaults,
      base_model_name_or_path: base,
      peft_type: 'LN_TUNING',
      target_modules: targets,
      exclude_modules: (excludeModules ?? null) as Json,
      modules_to_save: (modulesToSave ?? null) as Json,
      ...(fields as { readonly [field: string]: Json }),
    };
  },
};
