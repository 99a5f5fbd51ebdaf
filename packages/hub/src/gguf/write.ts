import { FormatError, ShapeError } from '@niwaki/tensor';
import { memorySink, writeThrough, type ByteSink } from '../bytes/sink.ts';
import type { ReadOptions } from '../bytes/byte-source.ts';
import type { LazyTensor } from '../safetensors/write.ts';
import {
  alignUp,
  ggufTensorBytes,
  scalarBytes,
  tensorTypeByName,
  valueTypes,
  type GgufScalar,
  type GgufScalarType,
  type GgufValue,
} from './types.ts';

/**
 * Writes a GGUF file (version 3, little-endian), tensors in the given order, one in memory at a time; shapes are
 * row-major and `dtype` is a GGUF type. Alignment comes from `general.alignment`, else 32.
 * Keys and names are written as given; on any failure the sink is abandoned.
 */
export async function writeGguf(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly LazyTensor[],
  sink: ByteSink,
  { signal }: ReadOptions = {},
): Promise<void> {
  await writeThrough(sink, signal, pieces(metadata, tensors));
}

/** The same in memory. */
export async function encodeGguf(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly LazyTensor[]): Promise<Uint8Array> {
  const sink = memorySink();
  await writeGguf(metadata, tensors, sink);
  return sink.bytes();
}

async function* pieces(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly LazyTensor[]): AsyncGenerator<Uint8Array> {
  const alignment = Number(metadata.get('general.alignment')?.value ?? 32);
  const placed = place(tensors, alignment);
  const header = encodeHeader(metadata, placed);
  yield header;
  yield new Uint8Array(alignUp(header.byteLength, alignment) - header.byteLength);
  for (const { tensor, bytes } of placed) {
    let written = 0;
    const given = tensor.read();
    for await (const piece of Symbol.asyncIterator in given ? given : [given]) {
      written += piece.byteLength;
      yield piece;
    }
    if (written !== bytes) {
      throw new ShapeError(`tensor '${tensor.name}': ${tensor.dtype} [${tensor.shape}] takes ${bytes} bytes, got ${written}`, {
        tensor: tensor.name,
      });
    }
    yield new Uint8Array(alignUp(bytes, alignment) - bytes);
  }
}

interface Placed {
  readonly tensor: LazyTensor;
  readonly type: number;
  readonly bytes: number;
  readonly offset: number;
}

function place(tensors: readonly LazyTensor[], alignment: number): Placed[] {
  let offset = 0;
  return tensors.map((tensor) => {
    const type = tensorTypeByName(tensor.dtype, tensor.name);
    const bytes = ggufTensorBytes(type, tensor.shape);
    if (bytes === undefined) {
      throw new ShapeError(`tensor '${tensor.name}': ${tensor.dtype} [${tensor.shape}] is no whole number of blocks`, {
        tensor: tensor.name,
      });
    }
    const placed = { tensor, type: type.id, bytes, offset };
    offset += alignUp(bytes, alignment);
    return placed;
  });
}

function encodeHeader(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly Placed[]): Uint8Array {
  const out = growingBytes();
  out.scalar('u32', 0x46554747);
  out.scalar('u32', 3);
  out.scalar('u64', tensors.length);
  out.scalar('u64', metadata.size);
  for (const [key, value] of metadata) {
    out.text(key);
    out.scalar('u32', valueTypes.indexOf(value.type));
    if (value.type !== 'array') out.scalar(value.type, value.value);
    else {
      out.scalar('u32', valueTypes.indexOf(value.of));
      out.scalar('u64', value.value.length);
      for (const item of value.value) out.scalar(value.of, item);
    }
  }
  for (const { tensor, type, offset } of tensors) {
    out.text(tensor.name);
    out.scalar('u32', tensor.shape.length);
    for (let axis = tensor.shape.length - 1; axis >= 0; axis--) out.scalar('u64', tensor.shape[axis]!);
    out.scalar('u32', type);
    out.scalar('u64', offset);
  }
  return out.bytes();
}

interface GrowingBytes {
  scalar(type: GgufScalarType, value: GgufScalar): void;
  text(value: string): void;
  bytes(): Uint8Array;
}

function growingBytes(): GrowingBytes {
  let buffer = new Uint8Array(4096);
  let view = new DataView(buffer.buffer);
  let at = 0;
  const reserve = (bytes: number): number => {
    if (at + bytes > buffer.byteLength) {
      const wider = new Uint8Array(Math.max(buffer.byteLength * 2, at + bytes));
      wider.set(buffer);
      buffer = wider;
      view = new DataView(buffer.buffer);
    }
    const here = at;
    at += bytes;
    return here;
  };
  const text = (value: string): void => {
    const encoded = new TextEncoder().encode(value);
    const here = reserve(8 + encoded.byteLength);
    view.setBigUint64(here, BigInt(encoded.byteLength), true);
    buffer.set(encoded, here + 8);
  };
  return {
    text,
    bytes: () => buffer.slice(0, at),
    scalar: (type, value) => {
      if (type === 'string') return text(String(value));
      const here = reserve(scalarBytes[type]);
      setScalar(view, here, type, value);
    },
  };
}

function setScalar(view: DataView, at: number, type: Exclude<GgufScalarType, 'string'>, value: GgufScalar): void {
  switch (type) {
    case 'u8':
      return view.setUint8(at, Number(value));
    case 'i8':
      return view.setInt8(at, Number(value));
    case 'u16':
      return view.setUint16(at, Number(value), true);
    case 'i16':
      return view.setInt16(at, Number(value), true);
    case 'u32':
      return view.setUint32(at, Number(value), true);
    case 'i32':
      return view.setInt32(at, Number(value), true);
    case 'f32':
      return view.setFloat32(at, Number(value), true);
    case 'f64':
      return view.setFloat64(at, Number(value), true);
    case 'u64':
      return view.setBigUint64(at, BigInt(value), true);
    case 'i64':
      return view.setBigInt64(at, BigInt(value), true);
    case 'bool':
      if (typeof value !== 'boolean') throw new FormatError(`a GGUF truth value must be true or false, got ${String(value)}`, { value });
      return view.setUint8(at, value ? 1 : 0);
  }
}
