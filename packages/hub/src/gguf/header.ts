import { FormatError } from '@niwaki/tensor';
import type { ByteSource, ReadOptions } from '../bytes/byte-source.ts';
import { createCursor, type Cursor } from './cursor.ts';
import {
  alignUp,
  ggufTensorBytes,
  scalarBytes,
  tensorTypeById,
  valueTypes,
  type GgufScalar,
  type GgufScalarType,
  type GgufTensorType,
  type GgufValue,
} from './types.ts';

export interface GgufTensorInfo {
  readonly name: string;
  readonly type: GgufTensorType;
  /** Row-major, as everywhere else: the file lists the sides the other way round. */
  readonly shape: readonly number[];
  /** Within the data section. */
  readonly offset: number;
  readonly bytes: number;
}

export interface GgufHeader {
  readonly version: number;
  /** In the order of the file. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensorInfo[];
  readonly alignment: number;
  /** Where tensor data starts in the file. */
  readonly dataStart: number;
}

export interface HeaderOptions extends ReadOptions {
  /** Bytes asked for at a time, default 256 KiB. */
  readonly sliceBytes?: number;
}

const smallestKey = 8 + 1 + 4 + 1;
/** Far above any vocabulary and any chat template; values of metadata become JavaScript objects, many bytes each. */
const mostValues = 16_777_216;
const longestText = 67_108_864;
const smallestTensor = 8 + 1 + 4 + 4 + 8;

/**
 * Reads and checks the header of a GGUF file through slices: versions 2 and 3, little-endian, any power-of-two alignment.
 * Every count is held against the bytes that are left before anything is allocated for it. Throws FormatError.
 */
export async function readGgufHeader(source: ByteSource, { sliceBytes = 262_144, ...options }: HeaderOptions = {}): Promise<GgufHeader> {
  const file = source.name;
  const fail = (what: string, fields: Record<string, unknown> = {}): FormatError =>
    new FormatError(`${file}: ${what}`, { file, ...fields });
  const cursor = createCursor(source, sliceBytes, options);
  await cursor.need(24, 'the file header');
  const magic = cursor.scalar('u32');
  if (magic !== 0x46554747) throw fail('not a GGUF file: it does not start with "GGUF"');
  const version = cursor.scalar('u32') as number;
  if ((version & 0xffff) === 0) throw fail('a big-endian GGUF file is not read', { version });
  if (version !== 2 && version !== 3) throw fail(`GGUF version ${version} is not read`, { version, help: 'Convert it to version 3.' });
  const tensorCount = cursor.count('the number of tensors');
  const keyCount = cursor.count('the number of metadata keys');
  if (keyCount * smallestKey + tensorCount * smallestTensor > cursor.rest) {
    throw fail(`${keyCount} metadata keys and ${tensorCount} tensors cannot fit in ${source.size} bytes`, { size: source.size });
  }

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = await readText(cursor, `metadata key ${i}`);
    if (key === '') throw fail(`metadata key ${i} is empty`);
    if (metadata.has(key)) throw fail(`metadata key '${key}' is given twice`, { key });
    metadata.set(key, await readValue(cursor, key, fail));
  }
  const alignment = readAlignment(metadata, fail);

  const infos: { name: string; type: GgufTensorType; shape: number[]; offset: number }[] = [];
  const names = new Set<string>();
  for (let i = 0; i < tensorCount; i++) {
    const name = await readText(cursor, `the name of tensor ${i}`, 63);
    if (names.has(name)) throw fail(`tensor '${name}' is given twice`, { tensor: name });
    names.add(name);
    await cursor.need(4, `tensor '${name}'`);
    const rank = cursor.scalar('u32') as number;
    if (rank > 4) throw fail(`tensor '${name}' has ${rank} sides, at most 4 are allowed`, { tensor: name });
    await cursor.need(rank * 8 + 12, `tensor '${name}'`);
    const shape = Array.from({ length: rank }, () => 0);
    for (let axis = rank - 1; axis >= 0; axis--) shape[axis] = cursor.count(`a side of tensor '${name}'`);
    const type = tensorTypeById(cursor.scalar('u32') as number, name, file);
    infos.push({ name, type, shape, offset: cursor.count(`the offset of tensor '${name}'`) });
  }
  const dataStart = alignUp(cursor.position, alignment);
  return { version, metadata, tensors: place(infos, alignment, dataStart, source.size, fail), alignment, dataStart };
}

type Fail = (what: string, fields?: Record<string, unknown>) => FormatError;

function readAlignment(metadata: ReadonlyMap<string, GgufValue>, fail: Fail): number {
  const value = metadata.get('general.alignment');
  if (value === undefined) return 32;
  const alignment = Number(value.value);
  if (value.type !== 'u32' || alignment < 1 || (alignment & (alignment - 1)) !== 0) {
    throw fail(`general.alignment is ${String(value.value)} (${value.type}), expected a power of two as u32`, { alignment: value.value });
  }
  return alignment;
}

/** Sizes, and that tensors follow one another: each starts where the one before, padded, ends. */
function place(
  infos: readonly { name: string; type: GgufTensorType; shape: readonly number[]; offset: number }[],
  alignment: number,
  dataStart: number,
  size: number,
  fail: Fail,
): GgufTensorInfo[] {
  let expected = 0;
  return infos.map((info) => {
    const { name, type, shape, offset } = info;
    const bytes = ggufTensorBytes(type, shape);
    if (bytes === undefined) {
      throw fail(`tensor '${name}': ${type.name} [${shape}] is no whole number of blocks of ${type.elements} a row`, {
        tensor: name,
        type: type.name,
        shape,
      });
    }
    if (offset !== expected) throw fail(`tensor '${name}' is at ${offset}, expected at ${expected}`, { tensor: name, offset, expected });
    if (dataStart + offset + bytes > size) {
      throw fail(`tensor '${name}' ends at byte ${dataStart + offset + bytes}, the file has ${size}`, {
        tensor: name,
        size,
        help: 'The download was cut off: fetch the file again.',
      });
    }
    expected = offset + alignUp(bytes, alignment);
    return { ...info, bytes };
  });
}

async function readText(cursor: Cursor, what: string, most = 65_535): Promise<string> {
  if (!cursor.has(8)) await cursor.need(8, what);
  const length = cursor.count(`the length of ${what}`);
  if (length > most) throw new FormatError(`${what} is ${length} bytes long, at most ${most} are allowed`, { length, most });
  if (!cursor.has(length)) await cursor.need(length, what);
  return cursor.text(length, what);
}

async function readValue(cursor: Cursor, key: string, fail: Fail): Promise<GgufValue> {
  const what = `the value of '${key}'`;
  const readType = async (): Promise<(typeof valueTypes)[number]> => {
    await cursor.need(4, what);
    const id = cursor.scalar('u32') as number;
    const type = valueTypes[id];
    if (type === undefined) throw fail(`'${key}' has the value type ${id}, which does not exist`, { key, type: id });
    return type;
  };
  const type = await readType();
  if (type !== 'array') return { type, value: await readScalar(cursor, type, what) };
  const of = await readType();
  if (of === 'array') throw fail(`'${key}' is an array of arrays, which is not read`, { key });
  await cursor.need(8, what);
  const count = cursor.count(`the length of '${key}'`);
  if (count > mostValues || count * scalarBytes[of] > cursor.rest)
    throw fail(`'${key}' says it has ${count} values, more than the file or a reader can hold`, { key, count });
  const value: GgufScalar[] = [];
  const size = scalarBytes[of];
  for (let i = 0; i < count; i++) {
    if (of === 'string') value.push(await readText(cursor, what, longestText));
    else {
      if (!cursor.has(size)) await cursor.need(size, what);
      value.push(cursor.scalar(of));
    }
  }
  return { type, of, value };
}

async function readScalar(cursor: Cursor, type: GgufScalarType, what: string): Promise<GgufScalar> {
  if (type === 'string') return readText(cursor, what, longestText);
  await cursor.need(scalarBytes[type], what);
  return cursor.scalar(type);
}
