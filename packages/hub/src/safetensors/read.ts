import { FormatError, NotFoundError, type Range, type RawTensor } from '@niwaki/tensor';
import type { TensorEntry, TensorSource } from '@niwaki/weights';
import type { ByteSource, ReadOptions } from '../bytes/byte-source.ts';
import { headerLength, parseHeader } from './header.ts';

export interface SafetensorsFile extends TensorSource {
  readonly metadata: ReadonlyMap<string, string>;
  close(): Promise<void>;
}

/**
 * Opens a safetensors file: reads and checks its header, nothing else. Tensors are read when asked for, by byte ranges.
 * `names()` is in the order of the bytes. Throws FormatError naming the tensor.
 */
export async function openSafetensors(source: ByteSource, options: ReadOptions = {}): Promise<SafetensorsFile> {
  const first = await source.read(0, Math.min(8, source.size), options);
  const length = headerLength(first, source.size, source.name);
  const { entries, metadata, dataStart } = parseHeader(await source.read(8, length, options), source.size, source.name);
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  const find = (name: string): (typeof entries)[number] => {
    const entry = byName.get(name);
    if (entry === undefined) throw new NotFoundError(`no tensor '${name}' in ${source.name}`, { tensor: name, file: source.name });
    return entry;
  };
  return {
    metadata,
    names: () => entries.map((entry) => entry.name),
    info: (name): TensorEntry => {
      const { dtype, shape, begin, end } = find(name);
      return { dtype, shape, bytes: end - begin };
    },
    read: async (name, range): Promise<RawTensor> => {
      const { dtype, shape, begin, end } = find(name);
      const [from, to] = checkTensorRange(name, end - begin, range);
      return { dtype, shape, bytes: await source.read(dataStart + begin + from, to - from, options) };
    },
    close: async () => source.close?.(),
  };
}

/** A range within one tensor, default all of it. Throws FormatError where it does not lie within. */
export function checkTensorRange(name: string, bytes: number, range: Range | undefined): Range {
  if (range === undefined) return [0, bytes];
  const [from, to] = range;
  if (Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from <= to && to <= bytes) return range;
  throw new FormatError(`tensor '${name}' has ${bytes} bytes, no range [${from}, ${to})`, { tensor: name, bytes, range });
}
