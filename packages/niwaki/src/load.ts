import { load as loadWith, type Loaded, type LoadOptions, type Source } from '@niwaki/hub';
import { loadAdapter as loadAdapterWith, type AdapterSource, type LoadAdapterOptions, type PeftSet } from '@niwaki/lowrank';
import type { Model } from '@niwaki/nn';
import { formats } from '@niwaki/quant';
import { adapterFiles } from '@niwaki/sparse';
import { knownModelResolver } from './known-models.ts';

/**
 * Loads a model from a folder, a .gguf or .safetensors file, a URL, Files, bytes, or a known name such as 'niwaki-tiny',
 * in any stored form that Niwaki reads. Formats and resolvers that are given come before its own.
 * @example const { model, tokenizer } = await load('niwaki-tiny');
 */
export const load = (source: Source, options: LoadOptions = {}): Promise<Loaded> =>
  loadWith(source, {
    ...options,
    formats: [...(options.formats ?? []), ...formats],
    resolvers: [...(options.resolvers ?? []), knownModelResolver],
  });

/**
 * Reads an adapter of any type that Niwaki writes, or Python's PEFT, and attaches it. Types that are given come beside its own.
 * @example const set = await loadAdapter(model, './my-adapter', { name: 'mine' });
 */
export const loadAdapter = (model: Model, source: AdapterSource, options: LoadAdapterOptions = {}): Promise<PeftSet> =>
  loadAdapterWith(model, source, { ...options, types: [...adapterFiles, ...(options.types ?? [])] });
