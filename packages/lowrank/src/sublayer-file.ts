import * as v from 'valibot';
import { adapterFile, layerNumbers, moduleNames, type AdapterFile, type AdapterMethod } from '@niwaki/peft';

/** Options that a file spells in PEFT's way, by the name they have here. */
const targetFields = {
  excludeModules: ['exclude_modules', moduleNames],
  layersToTransform: ['layers_to_transform', layerNumbers],
  layersPattern: ['layers_pattern', moduleNames],
} as const;

interface Kind {
  readonly peftType: string;
  /** Option → its field and what it may hold. */
  readonly options: Readonly<Record<string, readonly [field: string, schema: v.GenericSchema]>>;
  make(options: { readonly [option: string]: unknown }): AdapterMethod;
}

/** A type of ours, in the form of PEFT's files: Python's PEFT knows none for adapters of sub-layers. */
export function sublayerFile({ peftType, options: own, make }: Kind): AdapterFile {
  const options = Object.entries({ ...targetFields, ...own });
  return adapterFile({
    peftType,
    fields: Object.fromEntries(options.map(([, [field, content]]) => [field, v.nullish(content)])) as v.ObjectEntries,
    make: (config) =>
      make(Object.fromEntries(options.flatMap(([name, [field]]) => (config[field] == null ? [] : [[name, config[field]]])))),
    write: ({ method }) => Object.fromEntries(options.map(([name, [field]]) => [field, method.options[name] ?? null])),
  });
}
