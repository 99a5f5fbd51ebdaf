import { FormatError, NotFoundError } from '@niwaki/tensor';
import * as v from 'valibot';
import type { ByteSource, ReadOptions } from '../bytes/byte-source.ts';
import { parseJson, validate } from '../json.ts';
import { openSafetensors, type SafetensorsFile } from './read.ts';

export interface ShardedOptions extends ReadOptions {
  /** Told about tensors that lie in a shard and not in the index; they are not offered. */
  readonly warn?: (message: string) => void;
}

// Not v.record: it drops names such as `constructor`, which are legal for a tensor.
const isTextMap = (value: unknown): boolean =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && Object.values(value).every((shard) => typeof shard === 'string');
const indexSchema = v.object({ weight_map: v.custom<Record<string, string>>(isTextMap, 'expected file names by tensor') });

/** Shard by tensor out of `*.safetensors.index.json`. File names only: a path, a scheme or `..` is refused. */
export function parseIndex(bytes: Uint8Array, file: string): ReadonlyMap<string, string> {
  const { weight_map: shardOf } = validate(indexSchema, parseJson(bytes, file), file);
  const map = new Map(Object.entries(shardOf));
  for (const [tensor, shard] of map) {
    if (/^[^/\\:\0]+$/.test(shard) && shard !== '.' && shard !== '..') continue;
    throw new FormatError(`${file}: tensor '${tensor}' is said to be in ${JSON.stringify(shard)}, which is no plain file name`, {
      file,
      tensor,
      shard,
    });
  }
  return map;
}

/**
 * The tensors of all shards as one source. Every tensor of the index must be in the shard it names.
 * @param open opens a shard by file name; it throws NotFoundError where there is none
 */
export async function openSharded(
  index: ReadonlyMap<string, string>,
  open: (shard: string) => Promise<ByteSource>,
  options: ShardedOptions = {},
): Promise<SafetensorsFile> {
  const shards = new Map<string, SafetensorsFile>();
  const close = async (): Promise<void> => {
    for (const shard of shards.values()) await shard.close();
  };
  try {
    for (const name of new Set(index.values())) shards.set(name, await openSafetensors(await open(name), options));
    const present = new Map([...shards].map(([name, shard]) => [name, new Set(shard.names())]));
    const missing = [...index].filter(([tensor, shard]) => !present.get(shard)!.has(tensor));
    if (missing.length > 0) {
      const list = missing.map(([tensor, shard]) => `${tensor} (${shard})`);
      throw new FormatError(`tensors of the index are not in their shards: ${list.join(', ')}`, {
        missing: missing.map(([tensor]) => tensor),
      });
    }
    for (const [name, tensors] of present) {
      const extra = [...tensors].filter((tensor) => index.get(tensor) !== name);
      if (extra.length > 0) options.warn?.(`${name} holds tensors that the index does not list there: ${extra.join(', ')}`);
    }
  } catch (error) {
    await close();
    throw error;
  }
  const shardOf = (tensor: string): SafetensorsFile => {
    const shard = index.get(tensor);
    if (shard === undefined) throw new NotFoundError(`no tensor '${tensor}' in the index`, { tensor });
    return shards.get(shard)!;
  };
  return {
    metadata: new Map([...shards.values()].flatMap((shard) => [...shard.metadata])),
    names: () => [...shards].flatMap(([name, shard]) => shard.names().filter((tensor) => index.get(tensor) === name)),
    info: (tensor) => shardOf(tensor).info(tensor),
    read: (tensor, range) => shardOf(tensor).read(tensor, range),
    close,
  };
}
