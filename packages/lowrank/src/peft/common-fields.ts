import * as v from 'valibot';
import type { Json } from '@niwaki/tensor';
import type { FileFields } from '../adapter-method.ts';
import type { Warn } from '../warning.ts';
import { UnsupportedFieldError } from './errors.ts';

/** Fields of every `peft_type` that say nothing about the method: kept for the next reader. */
export const commonFields: v.ObjectEntries = {
  base_model_name_or_path: v.nullish(v.string()),
  revision: v.nullish(v.string()),
  task_type: v.nullish(v.picklist(['SEQ_CLS', 'SEQ_2_SEQ_LM', 'CAUSAL_LM', 'TOKEN_CLS', 'QUESTION_ANS', 'FEATURE_EXTRACTION'])),
  auto_mapping: v.nullish(v.record(v.string(), v.unknown())),
  peft_version: v.nullish(v.string()),
};

/** What they are where a set comes from no file. */
export const commonDefaults: { readonly [field: string]: Json } = {
  auto_mapping: null,
  base_model_name_or_path: null,
  inference_mode: true,
  peft_version: '0.21.0',
  revision: null,
  task_type: null,
};

/** Those of the named fields that hold something. */
export const keptFields = (json: { readonly [field: string]: Json }, names: Iterable<string>): FileFields =>
  Object.fromEntries([...names].flatMap((field) => (json[field] == null ? [] : [[field, json[field]]])));

/** @throws UnsupportedFieldError for fields that change what the adapter computes, where they hold something */
export function refuseFields(json: { readonly [field: string]: Json }, names: readonly string[]): void {
  const fields = names.filter((field) => json[field] != null && json[field] !== false);
  if (fields.length === 0) return;
  throw new UnsupportedFieldError(`adapter_config.json asks for ${fields.join(', ')}, which changes the result and is not served here`, {
    fields,
  });
}

/** Warns once, naming the fields that nothing here knows: newer writers have more of them. */
export function warnUnknown(json: { readonly [field: string]: Json }, known: Iterable<string>, warn: Warn): void {
  const names = new Set([...known, 'peft_type', 'inference_mode', 'runtime_config']);
  const unknown = Object.keys(json).filter((field) => !names.has(field) && json[field] !== null);
  if (unknown.length > 0)
    warn('unknown-field', `adapter_config.json has fields unknown here, which are ignored: ${unknown.join(', ')}`, unknown);
}
