import { FormatError, ShapeError, type RawTensor } from '@niwaki/tensor';
import type { ReadOptions } from '../bytes/byte-source.ts';
import { memorySink, writeThrough, type ByteSink } from '../bytes/sink.ts';
import { dtypeBits, dtypeRank, tensorBits } from './dtypes.ts';
import { maxHeaderBytes } from './header.ts';

/** A tensor to be written: its bytes are asked for when their turn comes, and let go after. */
export interface LazyTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** All bytes at once, or piece by piece. */
  read(): Promise<Uint8Array> | AsyncIterable<Uint8Array>;
}

export interface WriteOptions extends ReadOptions {
  /** `{ format: 'pt' }` is what Python's loaders want to see, and the default. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Bytes of tensors written so far. */
  readonly onProgress?: (progress: { loaded: number; total: number; name: string }) => void;
}

/**
 * Writes a safetensors file with the layout of the reference writer, tensor by tensor: no more than one is in memory.
 * On any failure or abort the sink is abandoned: no half-written file stays. Throws FormatError, ShapeError, AbortError.
 */
export async function writeSafetensors(tensors: readonly LazyTensor[], sink: ByteSink, options: WriteOptions = {}): Promise<void> {
  await writeThrough(sink, options.signal, pieces(tensors, options));
}

/** The same in memory, from tensors that are there. */
export async function encodeSafetensors(
  tensors: ReadonlyMap<string, RawTensor>,
  options: WriteOptions & { /** Write tensors that share memory once each; default: refuse. */ readonly cloneShared?: boolean } = {},
): Promise<Uint8Array> {
  if (!options.cloneShared) refuseShared(tensors);
  const sink = memorySink();
  const lazy = [...tensors].map(([name, { dtype, shape, bytes }]): LazyTensor => ({ name, dtype, shape, read: async () => bytes }));
  await writeSafetensors(lazy, sink, options);
  return sink.bytes();
}

async function* pieces(
  tensors: readonly LazyTensor[],
  { metadata = { format: 'pt' }, signal, onProgress }: WriteOptions,
): AsyncGenerator<Uint8Array> {
  const ordered = inFileOrder(tensors);
  const header = encodeHeader(ordered, metadata);
  yield header;
  const total = ordered.reduce((sum, tensor) => sum + byteLength(tensor), 0);
  let loaded = 0;
  for (const tensor of ordered) {
    const expected = byteLength(tensor);
    let written = 0;
    const given = tensor.read();
    for await (const piece of Symbol.asyncIterator in given ? given : [given]) {
      written += piece.byteLength;
      if (written > expected) break;
      yield piece;
      loaded += piece.byteLength;
    }
    if (written !== expected) {
      throw new ShapeError(`tensor '${tensor.name}': ${tensor.dtype} [${tensor.shape}] takes ${expected} bytes, got ${written}`, {
        tensor: tensor.name,
        expected,
        given: written,
      });
    }
    if (!signal?.aborted) onProgress?.({ loaded, total, name: tensor.name });
  }
}

/** Widest type first, then by name in code-point order. */
function inFileOrder(tensors: readonly LazyTensor[]): readonly LazyTensor[] {
  const names = new Set<string>();
  for (const { name, dtype } of tensors) {
    if (!dtypeRank.has(dtype))
      throw new FormatError(`tensor '${name}': safetensors has no dtype ${JSON.stringify(dtype)}`, { tensor: name, dtype });
    if (name === '__metadata__') throw new FormatError("'__metadata__' is not a name for a tensor", { tensor: name });
    if (names.has(name)) throw new FormatError(`tensor '${name}' is given twice`, { tensor: name });
    names.add(name);
  }
  return [...tensors].sort((a, b) => dtypeRank.get(b.dtype)! - dtypeRank.get(a.dtype)! || byCodePoint(a.name, b.name));
}

function encodeHeader(tensors: readonly LazyTensor[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const fields: string[] = [];
  const keys = Object.keys(metadata).sort(byCodePoint);
  for (const key of keys) {
    if (typeof metadata[key] !== 'string') throw new FormatError(`metadata '${key}' must be text, got ${typeof metadata[key]}`, { key });
  }
  if (keys.length > 0)
    fields.push(`"__metadata__":{${keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`).join()}}`);
  let at = 0;
  for (const tensor of tensors) {
    const end = at + byteLength(tensor);
    fields.push(`${JSON.stringify(tensor.name)}:{"dtype":"${tensor.dtype}","shape":[${tensor.shape}],"data_offsets":[${at},${end}]}`);
    at = end;
  }
  const json = new TextEncoder().encode(`{${fields.join()}}`);
  const length = Math.ceil(json.byteLength / 8) * 8;
  if (length > maxHeaderBytes)
    throw new FormatError(`a header of ${length} bytes is more than the format allows (${maxHeaderBytes})`, { length });
  const bytes = new Uint8Array(8 + length).fill(0x20);
  bytes.set(json, 8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  return bytes;
}

function byteLength({ name, dtype, shape }: Pick<LazyTensor, 'name' | 'dtype' | 'shape'>): number {
  const bits = tensorBits(shape, dtypeBits.get(dtype)!);
  if (bits === undefined || bits % 8 !== 0)
    throw new ShapeError(`tensor '${name}': ${dtype} [${shape}] has no whole number of bytes`, { tensor: name, shape });
  return bits / 8;
}

function refuseShared(tensors: ReadonlyMap<string, RawTensor>): void {
  const placed = [...tensors].filter(([, { bytes }]) => bytes.byteLength > 0);
  const byBuffer = new Map<ArrayBufferLike, { name: string; from: number; to: number }[]>();
  for (const [name, { bytes }] of placed) {
    const list = byBuffer.get(bytes.buffer) ?? [];
    list.push({ name, from: bytes.byteOffset, to: bytes.byteOffset + bytes.byteLength });
    byBuffer.set(bytes.buffer, list);
  }
  for (const list of byBuffer.values()) {
    list.sort((a, b) => a.from - b.from);
    for (let i = 1; i < list.length; i++) {
      const [before, here] = [list[i - 1]!, list[i]!];
      if (here.from >= before.to) continue;
      throw new FormatError(`tensors '${before.name}' and '${here.name}' share memory`, {
        tensors: [before.name, here.name],
        help: 'Write one of them (readers tie names themselves), or pass cloneShared: true.',
      });
    }
  }
}

/** JavaScript compares UTF-16 units, the format code points: they differ above U+FFFF. */
function byCodePoint(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i]!.codePointAt(0)! - right[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}
