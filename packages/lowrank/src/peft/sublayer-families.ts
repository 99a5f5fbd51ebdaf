import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import type { AdapterMethod } from '../adapter-method.ts';
import { bottleneck } from '../bottleneck.ts';
import { compacter } from '../compacter.ts';
import { commonDefaults, commonFields, keptFields, warnUnknown } from './common-fields.ts';
import type { PeftFamily } from './family.ts';

const names = v.union([v.string(), v.array(v.string())]);
const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const layer = v.pipe(v.number(), v.integer(), v.minValue(0));

/** Options that a file spells in PEFT's way, by the name they have here. */
const targetFields = {
  excludeModules: ['exclude_modules', names],
  layersToTransform: ['layers_to_transform', v.union([layer, v.array(layer)])],
  layersPattern: ['layers_pattern', names],
} as const;

interface Kind {
  readonly peftType: string;
  /** Option → its field and what it may hold. */
  readonly options: Readonly<Record<string, readonly [field: string, schema: v.GenericSchema]>>;
  make(options: { readonly [option: string]: unknown }): AdapterMethod;
}

/** A type of ours, in the form of PEFT's files: Python's PEFT knows none for adapters of sub-layers. */
function sublayerFamily({ peftType, options: own, make }: Kind): PeftFamily {
  const options = Object.entries({ ...targetFields, ...own });
  const schema = v.looseObject({
    peft_type: v.string(),
    target_modules: names,
    ...Object.fromEntries(options.map(([, [field, content]]) => [field, v.nullish(content)])),
    ...commonFields,
  });
  return {
    peftType,
    read: (json, _, warn) => {
      const config = validate(schema, json, 'adapter_config.json') as { readonly [field: string]: unknown };
      warnUnknown(json, Object.keys(schema.entries), warn);
      return {
        method: make(Object.fromEntries(options.flatMap(([name, [field]]) => (config[field] == null ? [] : [[name, config[field]]])))),
        targets: config['target_modules'] as string | string[],
        fields: keptFields(json, Object.keys(commonFields)),
        statesRank: false,
      };
    },
    write: ({ method, targets, fields, base }) => ({
      ...commonDefaults,
      base_model_name_or_path: base,
      peft_type: peftType,
      target_modules: targets,
      ...Object.fromEntries(options.map(([name, [field]]) => [field, method.options[name] ?? null])),
      ...(fields as { readonly [field: string]: Json }),
    }),
  };
}

/** `peft_type: BOTTLENECK`. */
export const bottleneckFamily: PeftFamily = sublayerFamily({
  peftType: 'BOTTLENECK',
  options: { reduction: ['reduction', count], modulesToSave: ['modules_to_save', v.array(v.string())] },
  make: bottleneck,
});

/** `peft_type: COMPACTER`. */
export const compacterFamily: PeftFamily = sublayerFamily({
  peftType: 'COMPACTER',
  options: {
    division: ['hypercomplex_division', count],
    reduction: ['reduction', count],
    rank: ['phm_rank', count],
    ruleRange: ['phm_init_range', v.number()],
    trainNorms: ['unfreeze_layer_norms', v.boolean()],
  },
  make: compacter,
});
