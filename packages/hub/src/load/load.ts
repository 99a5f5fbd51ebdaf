import { checkOptions, FormatError, NotFoundError } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import type { Format, Weight } from '@niwaki/weights';
import { urlNames, type UrlOptions } from '../bytes/url.ts';
import type { JsonObject } from '../json.ts';
import { createTokenizer, type TokenizerParts } from '../tokenizer/create.ts';
import { folderTokenizer } from '../tokenizer/folder.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { openModel } from './container.ts';
import { readModel } from './read-model.ts';
import { resolveSource, type Resolver, type Source } from './resolve.ts';

export interface LoadOptions extends UrlOptions {
  /**
   * How half-precision matrices are held: 'f32' (default) widens them, trainable, 4 bytes an entry; 'stored' keeps F16 and
   * BF16 in 2 bytes, frozen. Blocks of a GGUF file and matrices that a format claims stay packed either way.
   */
  readonly dtype?: 'f32' | 'stored';
  /** Storage formats by name of their tensors (bitsandbytes, GPTQ, …), asked in order. */
  readonly formats?: readonly Format<Weight>[];
  /** Asked first where a source is text: the door for downloads by id, caches, other stores. */
  readonly resolvers?: readonly Resolver[];
  /** In place of config.json, or over what GGUF metadata says. */
  readonly config?: JsonObject;
  /** Bytes of the files read so far, and the tensor that came last. */
  readonly onProgress?: (progress: { readonly loaded: number; readonly total: number; readonly name: string }) => void;
}

const loadNames = ['dtype', 'formats', 'resolvers', 'config', 'onProgress', ...urlNames] as const;

export interface Loaded {
  readonly model: Model;
  readonly tokenizer?: Tokenizer;
  readonly config: JsonObject;
  /** What is odd but not wrong: unused tensors, a tie that does not hold. */
  readonly warnings: readonly string[];
}

/**
 * Loads a model from a folder, a .gguf or .safetensors file, a URL of these, Files or bytes. Tensors come one at a time:
 * at its peak the host holds one tensor's bytes beside the model. Everything is frozen until trained on purpose.
 * Throws NotFoundError (files, missing tensors), FormatError (damage), ShapeError naming config fields, ConfigError
 * (a family or setting that is not known), AbortError; what was loaded until then is disposed.
 *
 * @example
 * const { model, tokenizer } = await load('SmolLM2-135M-Instruct.Q4_1.gguf');
 */
export async function load(source: Source, options: LoadOptions = {}): Promise<Loaded> {
  checkOptions('load', options, loadNames);
  const opened = await openModel(await resolveSource(source, options), options);
  try {
    const warnings = [...opened.warnings];
    const tokenizer = opened.tokenizer && tokenizerOrWarning(opened.tokenizer, warnings);
    const model = await readModel({ ...opened, warn: (message) => warnings.push(message) }, options);
    const rows = model.info.vocabularySize;
    if (tokenizer !== undefined && tokenizer.vocabularySize > rows) {
      warnings.push(`the tokenizer has ${tokenizer.vocabularySize} tokens, the embedding ${rows} rows: ids from ${rows} on cannot be used`);
    }
    return { model, config: model.info.config as JsonObject, warnings, ...(tokenizer === undefined ? {} : { tokenizer }) };
  } finally {
    await opened.close();
  }
}

/** The weights are as good without it; the caller may bring another one. */
function tokenizerOrWarning(parts: TokenizerParts, warnings: string[]): Tokenizer | undefined {
  try {
    return createTokenizer(parts);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    warnings.push(`no tokenizer: ${error.message}`);
    return undefined;
  }
}

/** The tokenizer alone, from any source that `load` takes. Throws NotFoundError where it has none. */
export async function loadTokenizer(source: Source, options: LoadOptions = {}): Promise<Tokenizer> {
  checkOptions('loadTokenizer', options, loadNames);
  const resolved = await resolveSource(source, options);
  if (resolved.kind === 'folder') {
    const parts = await folderTokenizer(resolved.folder);
    if (parts !== undefined) return createTokenizer(parts);
    throw new NotFoundError(`${resolved.folder.name}: no tokenizer.json`, { folder: resolved.folder.name });
  }
  const opened = await openModel(resolved, options);
  await opened.close();
  if (opened.tokenizer !== undefined) return createTokenizer(opened.tokenizer);
  throw new NotFoundError(`${opened.name}: no tokenizer`, { file: opened.name, warnings: opened.warnings });
}
