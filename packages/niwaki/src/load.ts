import { load as loadWith, type Loaded, type LoadOptions, type Source } from '@niwaki/hub';
import { formats } from '@niwaki/quant';
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
