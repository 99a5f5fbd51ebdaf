import { FormatError } from '@niwaki/tensor';

/** Value types of the metadata, by their number in the file. */
export const valueTypes = ['u8', 'i8', 'u16', 'i16', 'u32', 'i32', 'f32', 'bool', 'string', 'array', 'u64', 'i64', 'f64'] as const;
export type GgufValueType = (typeof valueTypes)[number];
export type GgufScalarType = Exclude<GgufValueType, 'array'>;

/** One metadata value with the type it was stored in, so that writing it again gives the same bytes. */
export type GgufValue =
  | { readonly type: GgufScalarType; readonly value: GgufScalar }
  | { readonly type: 'array'; readonly of: GgufScalarType; readonly value: readonly GgufScalar[] };

/** 64-bit integers are numbers where that loses nothing, bigint beyond. */
export type GgufScalar = number | bigint | boolean | string;

/** Bytes of a scalar; a string has 8 and its text. */
export const scalarBytes: Readonly<Record<GgufScalarType, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  u64: 8,
  i64: 8,
  f64: 8,
};

export interface GgufTensorType {
  readonly name: string;
  readonly id: number;
  /** Elements and bytes of one block along a row. */
  readonly elements: number;
  readonly bytes: number;
}

/** Types whose size is known, so that a file with one of them can be opened; which of them can be decoded is up to the weights. */
const rows = [
  ['F32', 0, 1, 4],
  ['F16', 1, 1, 2],
  ['Q4_0', 2, 32, 18],
  ['Q4_1', 3, 32, 20],
  ['Q5_0', 6, 32, 22],
  ['Q5_1', 7, 32, 24],
  ['Q8_0', 8, 32, 34],
  ['Q2_K', 10, 256, 84],
  ['Q3_K', 11, 256, 110],
  ['Q4_K', 12, 256, 144],
  ['Q5_K', 13, 256, 176],
  ['Q6_K', 14, 256, 210],
  ['IQ4_NL', 20, 32, 18],
  ['I8', 24, 1, 1],
  ['I16', 25, 1, 2],
  ['I32', 26, 1, 4],
  ['I64', 27, 1, 8],
  ['F64', 28, 1, 8],
  ['BF16', 30, 1, 2],
] as const;

const types: readonly GgufTensorType[] = rows.map(([name, id, elements, bytes]) => ({ name, id, elements, bytes }));
const byId = new Map(types.map((type) => [type.id, type]));
const byName = new Map(types.map((type) => [type.name, type]));

export function tensorTypeById(id: number, tensor: string, file: string): GgufTensorType {
  const type = byId.get(id);
  if (type !== undefined) return type;
  throw new FormatError(`${file}: tensor '${tensor}' has the type number ${id}, which is not read`, {
    file,
    tensor,
    type: id,
    help: 'Use a file in Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, F16, BF16 or F32.',
  });
}

export function tensorTypeByName(name: string, tensor: string): GgufTensorType {
  const type = byName.get(name);
  if (type !== undefined) return type;
  throw new FormatError(`tensor '${tensor}': GGUF has no type ${JSON.stringify(name)}`, { tensor, type: name });
}

/** Bytes of a tensor in row-major shape; undefined where rows are not whole blocks or the size passes 2^53. */
export function ggufTensorBytes(type: GgufTensorType, shape: readonly number[]): number | undefined {
  const count = shape.reduce((product, side) => product * side, 1);
  if (!Number.isSafeInteger(count) || (shape.at(-1) ?? 1) % type.elements !== 0) return undefined;
  const bytes = (count / type.elements) * type.bytes;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** `at` up to the next multiple of a power of two; what is aligned stays. */
export const alignUp = (at: number, alignment: number): number => Math.ceil(at / alignment) * alignment;
