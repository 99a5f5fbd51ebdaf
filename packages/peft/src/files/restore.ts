import { decodeFloats, type SafetensorsFile } from '@niwaki/hub';
import { createDraw, tensor, throwIfAborted, type Parameter, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { Adapter, Model } from '@niwaki/nn';
import type { ReadConfig } from '../adapter-file.ts';
import { baseOf, type Binding, type PeftSet, type StoredValues, type Warn, type Warning } from '../adapter-method.ts';
import { trainableTokens } from '../trainable-tokens.ts';
import { replacement, type Replaceable } from '../whole-modules.ts';
import type { Content } from './match.ts';

export interface RestoreOptions {
  readonly signal: AbortSignal | undefined;
  readonly name: string;
  readonly trainable: boolean;
  readonly warn: Warn;
  readonly warnings: readonly Warning[];
}

/**
 * Reads the matched tensors and makes the set of them, and the weights it expects where it was made for a rewritten base.
 * What was read is freed when anything fails.
 */
export async function restoreSet(
  file: SafetensorsFile,
  model: Model,
  { method, targets, fields }: ReadConfig,
  content: Content,
  options: RestoreOptions,
): Promise<{ set: PeftSet; weights: ReadonlyMap<string, Weight> }> {
  const { name, trainable, warn, warnings, signal } = options;
  const loose = new Set<Tensor>();
  const read = async (tensorName: string): Promise<Tensor> => {
    throwIfAborted(signal, 'loading the adapter');
    const raw = await file.read(tensorName);
    // A copy: bytes in memory are the caller's, and a device may keep what it is given.
    const value =
      raw.dtype === 'I32'
        ? tensor(new Int32Array(raw.bytes.slice().buffer), [...raw.shape], 'int32')
        : tensor(decodeFloats(raw).slice(), [...raw.shape], 'float32');
    loose.add(value);
    return value;
  };
  const owned: Parameter[] = [];
  const weights = new Map<string, Weight>();
  const own = <T extends Adapter>(adapter: T): T => {
    for (const parameter of Object.values(adapter.parameters)) {
      owned.push(parameter);
      loose.delete(parameter.read());
    }
    return adapter;
  };
  try {
    const replaced = new Map<string, Parameter>();
    const alsoStored = new Map<string, StoredValues>();
    for (const { name: parameterName, tensor: tensorName, like, stored } of content.parameters) {
      const value = await read(tensorName);
      if (stored && (await equals(value, like))) {
        alsoStored.set(parameterName, baseOf(model, parameterName));
        continue;
      }
      const parameter = replacement(parameterName, name, value, like.role, { trainable: trainable && !stored });
      loose.delete(value);
      owned.push(parameter);
      replaced.set(parameterName, parameter);
    }
    const binding: Binding = { name, draw: createDraw(0, 0), biasOf: (site) => replaced.get(`${site.path}.bias`), warn };
    const sites = new Map<string, Adapter>();
    const ofSite = new Map<string, ReadonlyMap<string, Tensor>>();
    for (const { site, names } of content.sites) {
      const tensors = new Map<string, Tensor>();
      for (const [slot, tensorName] of names) tensors.set(slot, await read(tensorName));
      ofSite.set(site.path, tensors);
      if (method.shared !== undefined) continue;
      const { adapter, weight } = await method.restore(site, tensors, binding, model);
      sites.set(site.path, own(adapter));
      if (weight !== undefined) weights.set(site.path, weight);
    }
    if (content.shared !== undefined) {
      const tensors = new Map<string, Tensor>();
      for (const [slot, tensorName] of content.shared.names) tensors.set(slot, await read(tensorName));
      for (const [path, adapter] of method.shared!.restore(content.shared.sites, tensors, binding, ofSite, model))
        sites.set(path, own(adapter));
    }
    for (const { target, name: tensorName } of content.tokens) {
      for (const [path, adapter] of trainableTokens(target, (await read(tensorName)) as Tensor2D, name)) sites.set(path, own(adapter));
    }
    for (const parameter of owned) if (!trainable) parameter.trainable = false;
    const base = typeof fields['base_model_name_or_path'] === 'string' ? fields['base_model_name_or_path'] : model.info.source;
    for (const value of loose) value.dispose();
    return { set: { name, method, sites, replaced, base, targets, fields, warnings, alsoStored }, weights };
  } catch (error) {
    for (const parameter of owned) parameter.dispose();
    for (const weight of weights.values()) disposeWeight(weight);
    for (const value of loose) value.dispose();
    throw error;
  }
}

async function equals(value: Tensor, like: Replaceable): Promise<boolean> {
  const current = like.copy();
  try {
    const [a, b] = [await value.data(), await current.data()];
    return a.every((number, i) => number === b[i]);
  } finally {
    current.dispose();
  }
}
