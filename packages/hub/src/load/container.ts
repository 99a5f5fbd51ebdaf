import { ConfigError, FormatError, NotFoundError } from '@niwaki/tensor';
import type { TensorSource } from '@niwaki/weights';
import type { ByteSource } from '../bytes/byte-source.ts';
import type { Folder } from '../bytes/folder.ts';
import type { UrlOptions } from '../bytes/url.ts';
import { ggufAsHf, openGguf } from '../gguf/read.ts';
import { parseJsonObject, type JsonObject } from '../json.ts';
import { openSafetensors } from '../safetensors/read.ts';
import { openSharded, parseIndex } from '../safetensors/sharded.ts';
import { ggufTokenizer } from '../tokenizer/gguf.ts';
import type { TokenizerParts } from '../tokenizer/create.ts';
import { folderTokenizer } from '../tokenizer/folder.ts';
import type { Resolved } from './resolve.ts';

/** A model's files, opened: nothing but headers was read. */
export interface OpenModel {
  readonly name: string;
  readonly config: JsonObject;
  readonly tensors: TensorSource;
  readonly tokenizer?: TokenizerParts | undefined;
  readonly warnings: readonly string[];
  close(): Promise<void>;
}

export interface OpenOptions extends UrlOptions {
  /** Used in place of config.json; needed for safetensors bytes that come alone. */
  readonly config?: JsonObject | undefined;
}

export async function openModel(resolved: Resolved, options: OpenOptions): Promise<OpenModel> {
  if (resolved.kind === 'folder') return openFolder(resolved.folder, options);
  const { file, beside } = resolved;
  try {
    const magic = await file.read(0, Math.min(4, file.size), options);
    const begins = new TextDecoder().decode(magic);
    if (begins === 'GGUF') return await openGgufModel(file, options);
    if (/\.gguf$/i.test(file.name)) throw notGguf(file, begins);
    return await openSafetensorsModel(file, beside, options);
  } catch (error) {
    await file.close?.();
    throw error;
  }
}

const notGguf = ({ name, size }: ByteSource, begins: string): FormatError =>
  new FormatError(`${name} is no GGUF file: ${size === 0 ? 'it is empty' : `it begins with ${JSON.stringify(begins)}, not with "GGUF"`}`, {
    file: name,
    size,
    help: 'A download may have saved an error page, or a pointer to the file, under its name: fetch it again.',
  });

async function openGgufModel(file: ByteSource, options: OpenOptions): Promise<OpenModel> {
  const container = await openGguf(file, options);
  const model = await ggufAsHf(container, file.name);
  const warnings: string[] = [];
  let tokenizer: TokenizerParts | undefined;
  try {
    tokenizer = ggufTokenizer(container.metadata, file.name);
  } catch (error) {
    // The weights are as good without it; the caller may bring another tokenizer.
    if (!(error instanceof FormatError)) throw error;
    warnings.push(`no tokenizer: ${error.message}`);
  }
  if (model.unknown.length > 0) warnings.push(`${file.name} holds tensors that are not used: ${model.unknown.join(', ')}`);
  return { name: file.name, config: { ...model.config, ...options.config }, tensors: model, tokenizer, warnings, close: container.close };
}

async function openSafetensorsModel(file: ByteSource, beside: Folder | undefined, options: OpenOptions): Promise<OpenModel> {
  // Whether the file is one at all comes before what is missing beside it.
  const tensors = await openSafetensors(file, options);
  const config = options.config ?? (beside && (await readConfig(beside)));
  if (config === undefined) {
    throw new ConfigError(`${file.name}: safetensors hold tensors alone, and there is no config.json beside them`, {
      file: file.name,
      help: 'Pass the contents of config.json as `config`, or the whole folder.',
    });
  }
  return { name: file.name, config, tensors, tokenizer: beside && (await folderTokenizer(beside)), warnings: [], close: tensors.close };
}

async function openFolder(folder: Folder, options: OpenOptions): Promise<OpenModel> {
  const config = options.config ?? (await readConfig(folder));
  if (config === undefined) {
    throw new NotFoundError(`${folder.name}: no config.json`, {
      folder: folder.name,
      help: 'Is it a folder of a Hugging Face model? GGUF files are passed by name.',
    });
  }
  const warnings: string[] = [];
  const tensors = await openFolderTensors(folder, { ...options, warn: (message) => warnings.push(message) });
  try {
    return { name: folder.name, config, tensors, tokenizer: await folderTokenizer(folder), warnings, close: tensors.close };
  } catch (error) {
    await tensors.close();
    throw error;
  }
}

/** The tensors of a folder: `stem.safetensors`, or the shards of its index. Throws NotFoundError where there is neither. */
export async function openFolderTensors(
  folder: Folder,
  { stem = 'model', ...options }: UrlOptions & { readonly stem?: string; readonly warn?: (message: string) => void } = {},
): Promise<TensorSource & { close(): Promise<void> }> {
  const single = await folder.open(`${stem}.safetensors`);
  if (single !== undefined) {
    return openSafetensors(single, options).catch(async (error: unknown) => {
      await single.close?.();
      throw error;
    });
  }
  const indexName = `${stem}.safetensors.index.json`;
  const index = await folder.bytes(indexName);
  if (index === undefined) {
    throw new NotFoundError(`${folder.name}: neither ${stem}.safetensors nor ${indexName}`, {
      folder: folder.name,
      help: 'Pickled checkpoints (.bin, .pt) are not read: convert them to safetensors.',
    });
  }
  const open = async (shard: string): Promise<ByteSource> => {
    const source = await folder.open(shard);
    if (source === undefined) throw new NotFoundError(`${folder.name}: the shard ${shard} is missing`, { folder: folder.name, shard });
    return source;
  };
  return openSharded(parseIndex(index, indexName), open, options);
}

async function readConfig(folder: Folder): Promise<JsonObject | undefined> {
  const bytes = await folder.bytes('config.json');
  return bytes === undefined ? undefined : parseJsonObject(bytes, `${folder.name}/config.json`);
}
