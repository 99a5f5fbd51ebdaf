import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import { qst, type QstOptions } from '../qst.ts';
import { commonDefaults, commonFields, keptFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const schema = v.looseObject({
  peft_type: v.string(),
  r: count,
  peft_hidden_size: v.nullish(count),
  downsample: v.picklist(['adapter', 'lora', 'linear', 'average', 'max']),
  num_attention_heads: v.nullish(count),
  code_compat: v.boolean(),
  ...commonFields,
});

/** `peft_type: QST`, a type of ours in the form of PEFT's files; options by the names of the authors' code where it has them. */
export const qstFamily: PeftFamily = {
  peftType: 'QST',
  read: (json, model, warn) => {
    const config = validate(schema, json, 'adapter_config.json');
    warnUnknown(json, Object.keys(schema.entries), warn);
    const method = qst({
      reduction: config.r,
      downsample: config.downsample,
      codeCompat: config.code_compat,
      ...(config.peft_hidden_size != null && { rank: config.peft_hidden_size }),
      ...(config.num_attention_heads != null && { heads: config.num_attention_heads }),
    });
    const sites = model.sites(() => true, { points: method.points });
    return { method, targets: sites.map(({ path }) => path), fields: keptFields(json, Object.keys(commonFields)), statesRank: false };
  },
  write: ({ method, fields, base }) => {
    const { reduction, rank, downsample, heads, codeCompat } = method.options as unknown as QstOptions;
    return {
      ...commonDefaults,
      base_model_name_or_path: base,
      peft_type: 'QST',
      r: reduction!,
      peft_hidden_size: rank!,
      downsample: downsample!,
      num_attention_heads: heads ?? null,
      code_compat: codeCompat!,
      ...(fields as { readonly [field: string]: Json }),
    };
  },
};
