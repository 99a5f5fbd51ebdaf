import { FormatError, NotFoundError, type Json, type RawTensor } from '@niwaki/tensor';
import type { TensorEntry, TensorSource } from '@niwaki/weights';
import type { ByteSource } from '../bytes/byte-source.ts';
import { decodeFloats } from '../safetensors/decode.ts';
import { checkTensorRange } from '../safetensors/read.ts';
import { ggufConfig } from './config.ts';
import { ggufFamily } from './families.ts';
import { readGgufHeader, type GgufHeader, type GgufTensorInfo, type HeaderOptions } from './header.ts';
import { metadataReader, type GgufMetadata } from './metadata.ts';
import { hfName, permutedHeads } from './names.ts';
import { readUnpermuted } from './permute.ts';

/** A GGUF file under its own names, rows as they lie there. */
export interface GgufContainer extends TensorSource {
  readonly header: GgufHeader;
  readonly metadata: GgufMetadata;
  close(): Promise<void>;
}

/** Opens a GGUF file: its header is read through slices, tensors when asked for. `dtype` is a GGUF type, shapes are row-major. */
export async function openGguf(source: ByteSource, { sliceBytes, ...options }: HeaderOptions = {}): Promise<GgufContainer> {
  const header = await readGgufHeader(source, sliceBytes === undefined ? options : { sliceBytes, ...options });
  const byName = new Map(header.tensors.map((tensor) => [tensor.name, tensor]));
  const find = (name: string): GgufTensorInfo => {
    const tensor = byName.get(name);
    if (tensor === undefined) throw new NotFoundError(`no tensor '${name}' in ${source.name}`, { tensor: name, file: source.name });
    return tensor;
  };
  return {
    header,
    metadata: metadataReader(header.metadata, source.name),
    names: () => header.tensors.map(({ name }) => name),
    info: (name): TensorEntry => {
      const { type, shape, bytes } = find(name);
      return { dtype: type.name, shape, bytes };
    },
    read: async (name, range): Promise<RawTensor> => {
      const { type, shape, bytes, offset } = find(name);
      const [from, to] = checkTensorRange(name, bytes, range);
      return { dtype: type.name, shape, bytes: await source.read(header.dataStart + offset + from, to - from, options) };
    },
    close: async () => source.close?.(),
  };
}

export interface GgufModel extends TensorSource {
  /** What config.json would say (v4 names). */
  readonly config: { readonly [field: string]: Json };
  /** Tensors of the file that the family has no name for. */
  readonly unknown: readonly string[];
}

/**
 * The same file as a Hugging Face model: its names, its row order (llama's interleaved q and k rows are put back, packed
 * or not), its config. Throws FormatError for an architecture or a rope scaling that is not read.
 */
export async function ggufAsHf(container: GgufContainer, file: string): Promise<GgufModel> {
  const { header, metadata } = container;
  const family = ggufFamily(metadata.text('general.architecture'), file);
  const ropeTable = 'rope_freqs.weight';
  const divisors = header.tensors.some(({ name }) => name === ropeTable) ? [...decodeFloats(await container.read(ropeTable))] : undefined;
  const config = ggufConfig({ header, metadata, family, file, ...(divisors === undefined ? {} : { divisors }) });
  const heads = { query: config['num_attention_heads'] as number, key: config['num_key_value_heads'] as number };

  const stored = new Map<string, string>();
  const unknown: string[] = [];
  for (const { name } of header.tensors) {
    if (name === ropeTable) continue;
    const hf = hfName(name);
    if (hf === undefined) unknown.push(name);
    else if (stored.has(hf))
      throw new FormatError(`${file}: tensors '${stored.get(hf)}' and '${name}' are one in the model`, { file, tensor: name });
    else stored.set(hf, name);
  }
  const find = (name: string): string => {
    const own = stored.get(name);
    if (own === undefined) throw new NotFoundError(`no tensor '${name}' in ${file}`, { tensor: name, file });
    return own;
  };
  return {
    config,
    unknown,
    names: () => [...stored.keys()],
    info: (name) => container.info(find(name)),
    read: async (name, range) => {
      const own = find(name);
      const rows = permutedHeads(name, family, heads);
      if (rows === undefined) return container.read(own, range);
      const { dtype, shape, bytes } = container.info(own);
      const read = async (from: number, to: number): Promise<Uint8Array> => (await container.read(own, [from, to])).bytes;
      const of = { name: own, rows: shape[0] ?? 1, bytes, heads: rows };
      return { dtype, shape, bytes: await readUnpermuted(of, checkTensorRange(name, bytes, range), read) };
    },
  };
}
