import { FormatError } from '@niwaki/tensor';
import { dtypeBits, tensorBits } from './dtypes.ts';
import { repeatedKey } from './header-keys.ts';

export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Within the byte buffer, not the file. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** In the order of their bytes. */
  readonly entries: readonly SafetensorsEntry[];
  readonly metadata: ReadonlyMap<string, string>;
  /** Where the byte buffer starts in the file. */
  readonly dataStart: number;
}

export const maxHeaderBytes = 100_000_000;

const fail = (file: string, what: string, fields: Record<string, unknown> = {}): FormatError =>
  new FormatError(`${file}: ${what}`, { file, ...fields });

/** The header's length out of the first 8 bytes; checked before anything is allocated or fetched for it. */
export function headerLength(first: Uint8Array, fileSize: number, file: string): number {
  if (fileSize < 8) throw fail(file, `a safetensors file has at least 8 bytes, this one has ${fileSize}`, { size: fileSize });
  const view = new DataView(first.buffer, first.byteOffset, 8);
  const length = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  if (length > maxHeaderBytes) throw fail(file, `the header says it has ${length} bytes, more than ${maxHeaderBytes}`, { length });
  if (8 + length > fileSize)
    throw fail(file, `the header says it has ${length} bytes, the file only ${fileSize}`, { length, size: fileSize });
  return length;
}

/** Checks everything the format promises, in the reference's order. `fileSize` catches cut downloads and hidden trailers. */
export function parseHeader(bytes: Uint8Array, fileSize: number, file: string): SafetensorsHeader {
  const header = parseObject(bytes, file);
  const metadata = readMetadata(header.get('__metadata__'), file);
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of header) {
    if (name !== '__metadata__') entries.push(readEntry(name, value, file));
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  for (const entry of entries) {
    const { name, begin, end } = entry;
    if (begin !== at || end < begin) {
      throw fail(file, `tensor '${name}' is at bytes [${begin}, ${end}), expected to start at ${at}: holes and overlaps are not allowed`, {
        tensor: name,
        offsets: [begin, end],
        expected: at,
      });
    }
    checkSize(entry, file);
    at = end;
  }
  const dataStart = 8 + bytes.byteLength;
  if (dataStart + at !== fileSize) {
    const last = entries.at(-1)?.name;
    throw fail(
      file,
      `header and tensors take ${dataStart + at} bytes${last === undefined ? '' : ` (the last is '${last}')`}, the file has ${fileSize}`,
      {
        expected: dataStart + at,
        size: fileSize,
        help:
          dataStart + at > fileSize
            ? 'The download was cut off: fetch the file again.'
            : 'Something was appended to the file: do not trust it.',
      },
    );
  }
  return { entries, metadata, dataStart };
}

function parseObject(bytes: Uint8Array, file: string): ReadonlyMap<string, unknown> {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(`${file}: the header is not JSON`, { file, cause, help: 'Is it a safetensors file?' });
  }
  if (!isObject(value)) throw fail(file, 'the header is not a JSON object');
  const repeated = repeatedKey(text);
  if (repeated !== undefined) throw fail(file, `tensor '${repeated}' is listed twice`, { tensor: repeated });
  return new Map(Object.entries(value));
}

function readMetadata(value: unknown, file: string): ReadonlyMap<string, string> {
  if (value === undefined || value === null) return new Map();
  if (!isObject(value)) throw fail(file, '__metadata__ is not an object');
  const entries = Object.entries(value);
  const bad = entries.find(([, text]) => typeof text !== 'string');
  if (bad) throw fail(file, `__metadata__ holds text only, '${bad[0]}' is ${typeof bad[1]}`, { key: bad[0] });
  return new Map(entries as [string, string][]);
}

function readEntry(name: string, value: unknown, file: string): SafetensorsEntry {
  const bad = (what: string): FormatError => fail(file, `tensor '${name}': ${what}`, { tensor: name });
  if (!isObject(value)) throw bad('its entry is not an object');
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string' || !dtypeBits.has(dtype)) throw bad(`unknown dtype ${JSON.stringify(dtype)}`);
  if (!Array.isArray(shape)) throw bad('shape is missing or not an array');
  // A side beyond 2^53 is a number JSON already rounded: it is an overflow, whatever it was.
  if (!shape.every((side) => typeof side === 'number' && Number.isInteger(side) && side >= 0))
    throw bad(`shape [${shape}] has a side that is no count`);
  if (!shape.every(Number.isSafeInteger)) throw bad(`shape [${shape}] overflows`);
  if (!Array.isArray(offsets) || offsets.length !== 2) throw bad('data_offsets must be two numbers');
  if (!offsets.every((offset) => Number.isSafeInteger(offset) && offset >= 0))
    throw bad(`data_offsets [${offsets}] are not byte positions`);
  return { name, dtype, shape: shape as number[], begin: offsets[0] as number, end: offsets[1] as number };
}

function checkSize({ name, dtype, shape, begin, end }: SafetensorsEntry, file: string): void {
  const bad = (what: string): FormatError => fail(file, `tensor '${name}': ${what}`, { tensor: name, dtype, shape });
  const bits = tensorBits(shape, dtypeBits.get(dtype)!);
  if (bits === undefined) throw bad(`${dtype} [${shape}] overflows`);
  if (bits % 8 !== 0) throw bad(`${dtype} [${shape}] does not end on a byte`);
  if (bits / 8 !== end - begin) throw bad(`${dtype} [${shape}] takes ${bits / 8} bytes, its offsets span ${end - begin}`);
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
