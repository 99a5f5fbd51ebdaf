import { load as loadWith, type Loaded, type LoadOptions, type Source } from '@niwaki/hub';
import type { AdapterSet, Model } from '@niwaki/nn';
import {
  loadAdapter as loadAdapterWith,
  swapAdapter as swapAdapterWith,
  type AdapterSource,
  type LoadAdapterOptions,
  type PeftSet,
  type SwapOptions,
} from '@niwaki/peft';
import { formats } from '@niwaki/quant';
import { adapterFiles } from './adapter-files.ts';
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

/** Types of adapters that are given come beside Niwaki's own. */
const withTypes = <O extends SwapOptions>(options: O): O => ({ ...options, types: [...adapterFiles, ...(options.types ?? [])] });

/**
 * Reads an adapter of any type that Niwaki writes, or Python's PEFT, and attaches it. Types that are given come beside its own.
 * @example const set = await loadAdapter(model, './my-adapter', { name: 'mine' });
 */
export const loadAdapter = (model: Model, source: AdapterSource, options: LoadAdapterOptions = {}): Promise<PeftSet> =>
  loadAdapterWith(model, source, withTypes(options));

/**
 * Gives an attached adapter the values of another set or file: nothing is built or compiled again. See `swapAdapter` of
 * `@niwaki/peft`.
 * @example await swapAdapter(model, 'default', './another-adapter');
 */
export const swapAdapter = (model: Model, name: string, source: AdapterSet | AdapterSource, options: SwapOptions = {}): Promise<void> =>
  swapAdapterWith(model, name, source, withTypes(options));
