import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import { NotFoundError, type Json } from '@niwaki/tensor';
import { ia3, type Ia3Options } from '../ia3.ts';
import { commonDefaults, commonFields, keptFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const names = v.union([v.string(), v.array(v.string())]);

const fileFields = { ...commonFields, fan_in_fan_out: v.nullish(v.boolean()) };
const schema = v.looseObject({
  peft_type: v.string(),
  target_modules: v.nullish(names),
  feedforward_modules: v.nullish(names),
  exclude_modules: v.nullish(names),
  modules_to_save: v.nullish(v.array(v.string())),
  init_ia3_weights: v.nullish(v.boolean(), true),
  ...fileFields,
});

/** What PEFT takes where a config names no modules. */
const defaultTargets: readonly string[] = ['k_proj', 'v_proj', 'down_proj'];
const defaultFeedforward: readonly string[] = ['down_proj'];

/** `peft_type: IA3`. */
export const ia3Family: PeftFamily = {
  peftType: 'IA3',
  read: (json, model, warn) => {
    const config = validate(schema, json, 'adapter_config.json');
    warnUnknown(json, Object.keys(schema.entries), warn);
    const family = model.info.config['model_type'];
    if (config.target_modules == null && !['llama', 'mistral', 'qwen2', 'qwen3'].includes(String(family))) {
      throw new NotFoundError(`models of type '${String(family)}' have no default target modules`, { modelType: family });
    }
    // Without target modules PEFT takes both lists from the architecture; with them, no feed-forward modules means none.
    const feedforward = config.feedforward_modules ?? (config.target_modules == null ? defaultFeedforward : []);
    const method = ia3({
      feedforwardModules: feedforward,
      init: config.init_ia3_weights,
      ...(config.exclude_modules != null && { excludeModules: config.exclude_modules }),
      ...(config.modules_to_save != null && { modulesToSave: config.modules_to_save }),
    });
    return {
      method,
      targets: config.target_modules ?? defaultTargets,
      fields: keptFields(json, Object.keys(fileFields)),
      statesRank: false,
    };
  },
  write: ({ method, targets, fields, base }) => {
    const settings = method.targeting as Ia3Options;
    return {
      ...commonDefaults,
      base_model_name_or_path: base,
      peft_type: 'IA3',
      fan_in_fan_out: false,
      target_modules: targets,
      feedforward_modules: settings.feedforwardModules as Json,
      exclude_modules: (settings.excludeModules ?? null) as Json,
      modules_to_save: (settings.modulesToSave ?? null) as Json,
      init_ia3_weights: settings.init ?? true,
      ...(fields as { readonly [field: string]: Json }),
    };
  },
};
