import * as v from 'valibot';
import { validate } from '@niwaki/hub';
import type { Json } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import type { AdapterMethod, FileFields, PeftSet, Warn } from './adapter-method.ts';
import { UnsupportedFieldError } from './files/errors.ts';
import type { TargetModules } from './targets.ts';

/** One `peft_type`: how its adapter_config.json is read and written. */
export interface AdapterFile {
  readonly peftType: string;
  /** @throws FormatError, ConfigError, UnsupportedFieldError naming the fields */
  read(json: FileJson, model: Model, warn: Warn): ReadConfig;
  /** Every field of the type, defaults included. */
  write(set: PeftSet): FileJson;
}

type FileJson = { readonly [field: string]: Json };

export interface ReadConfig {
  readonly method: AdapterMethod;
  readonly targets: TargetModules;
  /** Fields that are no options of the method and are written back as they came. */
  readonly fields: FileFields;
  /** Whether the config names a rank; one that does not takes the tensors' word. */
  readonly statesRank: boolean;
}

/** The fields of a file, checked. */
export type CheckedFields<Fields extends v.ObjectEntries> = v.InferOutput<v.ObjectSchema<Fields, undefined>>;

export interface AdapterFileSpec<Fields extends v.ObjectEntries> {
  readonly peftType: string;
  /** Fields that become options, by what each may hold. Those that all types have are known. */
  readonly fields: Fields;
  /** Fields that say nothing about the method, for the next reader. */
  readonly kept?: v.ObjectEntries;
  /** More of them, where a value decides. */
  keep?(config: CheckedFields<Fields>): readonly string[];
  /** Known, without effect on a stored adapter, and not kept. */
  readonly ignored?: readonly string[];
  /** Those that change what the adapter computes and are not served: refused where they hold something. */
  readonly refused?: readonly string[];
  /**
   * What is targeted where a file names no modules; absent: it has to. 'all': files have no field for that, and every site
   * of the method's points is.
   */
  readonly targets?: 'all' | ((model: Model) => TargetModules);
  /** Whether the config names a rank; absent: it does not. */
  statesRank?(config: CheckedFields<Fields>): boolean;
  /** @param about `named`: whether the file names its modules */
  make(config: CheckedFields<Fields>, about: { readonly model: Model; readonly named: boolean; readonly warn: Warn }): AdapterMethod;
  /** Every field of `fields`, and what Python writes beside them. */
  write(set: PeftSet): FileJson;
}

/** Modules as PEFT names them: a pattern, or a list of names. */
export const moduleNames: v.GenericSchema<string | string[]> = v.union([v.string(), v.array(v.string())]);
/** A whole number from 1. */
export const wholeCount: v.GenericSchema<number> = v.pipe(v.number(), v.integer(), v.minValue(1));
/** A layer's number, or several. */
export const layerNumbers: v.GenericSchema<number | number[]> = v.union([
  v.pipe(v.number(), v.integer(), v.minValue(0)),
  v.array(v.pipe(v.number(), v.integer(), v.minValue(0))),
]);

/** Fields of every type that say nothing about the method: kept for the next reader. */
const commonFields = {
  base_model_name_or_path: v.nullish(v.string()),
  revision: v.nullish(v.string()),
  task_type: v.nullish(v.picklist(['SEQ_CLS', 'SEQ_2_SEQ_LM', 'CAUSAL_LM', 'TOKEN_CLS', 'QUESTION_ANS', 'FEATURE_EXTRACTION'])),
  auto_mapping: v.nullish(v.record(v.string(), v.unknown())),
  peft_version: v.nullish(v.string()),
} satisfies v.ObjectEntries;

/** What they are where a set comes from no file. */
const commonDefaults: FileJson = {
  auto_mapping: null,
  base_model_name_or_path: null,
  inference_mode: true,
  peft_version: '0.21.0',
  revision: null,
  task_type: null,
};

/** Reads and writes what the files of all types have; what is a type's own, `spec` says. */
export function adapterFile<Fields extends v.ObjectEntries>(spec: AdapterFileSpec<Fields>): AdapterFile {
  const { peftType, fields, kept = {}, ignored = [], refused = [], targets: fallback } = spec;
  const every = fallback === 'all';
  const target_modules = fallback === undefined ? moduleNames : v.nullish(moduleNames);
  const schema = v.looseObject({ peft_type: v.string(), ...(!every && { target_modules }), ...fields, ...commonFields, ...kept });
  return {
    peftType,
    read: (json, model, warn) => {
      refuseFields(json, refused);
      const config = validate(schema, json, 'adapter_config.json') as CheckedFields<Fields> & { target_modules?: TargetModules | null };
      warnUnknown(json, [...Object.keys(schema.entries), ...refused, ...ignored], warn);
      const named = !every && config.target_modules != null;
      const method = spec.make(config, { model, named, warn });
      const targetsOf = (): TargetModules =>
        every
          ? model.sites(() => true, { points: method.points }).map(({ path }) => path)
          : (fallback as (model: Model) => TargetModules)(model);
      return {
        method,
        targets: named ? config.target_modules! : targetsOf(),
        fields: held(json, [...Object.keys(commonFields), ...Object.keys(kept), ...(spec.keep?.(config) ?? [])]),
        statesRank: spec.statesRank?.(config) ?? false,
      };
    },
    write: (set) => ({
      ...commonDefaults,
      base_model_name_or_path: set.base,
      peft_type: peftType,
      ...(!every && { target_modules: set.targets }),
      ...spec.write(set),
      ...(held(set.fields as FileJson, Object.keys(set.fields)) as FileJson),
    }),
  };
}

/** Those of the named fields that hold something. */
const held = (json: FileJson, names: readonly string[]): FileFields =>
  Object.fromEntries(names.flatMap((field) => (json[field] == null ? [] : [[field, json[field]]])));

const isOff = (value: Json | undefined): boolean =>
  value == null || value === false || (typeof value === 'object' && Object.keys(value).length === 0);

function refuseFields(json: FileJson, names: readonly string[]): void {
  const fields = names.filter((field) => !isOff(json[field]));
  if (fields.length === 0) return;
  throw new UnsupportedFieldError(`adapter_config.json asks for ${fields.join(', ')}, which changes the result and is not served here`, {
    fields,
    help: 'Convert the adapter to a plain one of its type first.',
  });
}

/** Warns once, naming the fields that nothing here knows: newer writers have more of them. */
function warnUnknown(json: FileJson, known: Iterable<string>, warn: Warn): void {
  const names = new Set([...known, 'peft_type', 'inference_mode', 'runtime_config']);
  const unknown = Object.keys(json).filter((field) => !names.has(field) && json[field] !== null);
  if (unknown.length > 0)
    warn('unknown-field', `adapter_config.json has fields unknown here, which are ignored: ${unknown.join(', ')}`, unknown);
}
