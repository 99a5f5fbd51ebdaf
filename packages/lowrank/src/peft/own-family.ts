import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { AdapterFile } from '@niwaki/engine';
import type { Json } from '@niwaki/tensor';
import { commonDefaults, commonFields, keptFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const schema = v.looseObject({
  peft_type: v.string(),
  target_modules: v.union([v.string(), v.array(v.string())]),
  ...commonFields,
});

/** A type that another package brings, in the form of PEFT's files: what is its own it reads and writes itself. */
export function ownFamily(file: AdapterFile): PeftFamily {
  return {
    peftType: file.peftType,
    read: (json, _, warn) => {
      const { target_modules: targets } = validate(schema, json, 'adapter_config.json');
      warnUnknown(json, [...Object.keys(schema.entries), ...file.fields], warn);
      return { method: file.read(json), targets, fields: keptFields(json, Object.keys(commonFields)), statesRank: false };
    },
    write: (set) => ({
      ...commonDefaults,
      base_model_name_or_path: set.base,
      peft_type: file.peftType,
      target_modules: set.targets,
      ...file.write(set),
      ...(set.fields as { readonly [field: string]: Json }),
    }),
  };
}
