import {
  ConfigError,
  FormatError,
  NumericError,
  bfloatToFloat,
  floatToBfloat,
  floatToHalf,
  halfToFloat,
  type RawTensor,
} from '@niwaki/tensor';

type Element = (view: DataView, index: number) => number;

const exact53 = (value: bigint, raw: RawTensor): number => {
  const number = Number(value);
  if (!Number.isSafeInteger(number))
    throw new NumericError(`an ${raw.dtype} value of ${value} does not fit a number`, { dtype: raw.dtype });
  return number;
};

/** Element readers at any byte offset: files do not promise alignment. */
const elements: Readonly<Record<string, (raw: RawTensor) => Element>> = {
  BOOL: () => (view, i) => (view.getUint8(i) === 0 ? 0 : 1),
  U8: () => (view, i) => view.getUint8(i),
  I8: () => (view, i) => view.getInt8(i),
  U16: () => (view, i) => view.getUint16(2 * i, true),
  I16: () => (view, i) => view.getInt16(2 * i, true),
  F16: () => (view, i) => halfToFloat(view.getUint16(2 * i, true)),
  BF16: () => (view, i) => bfloatToFloat(view.getUint16(2 * i, true)),
  U32: () => (view, i) => view.getUint32(4 * i, true),
  I32: () => (view, i) => view.getInt32(4 * i, true),
  F32: () => (view, i) => view.getFloat32(4 * i, true),
  F64: () => (view, i) => view.getFloat64(8 * i, true),
  I64: (raw) => (view, i) => exact53(view.getBigInt64(8 * i, true), raw),
  U64: (raw) => (view, i) => exact53(view.getBigUint64(8 * i, true), raw),
  F8_E4M3: () => (view, i) => eightBits(view.getUint8(i), 4, 7, 'nan-only'),
  F8_E5M2: () => (view, i) => eightBits(view.getUint8(i), 5, 15, 'ieee'),
  F8_E4M3FNUZ: () => (view, i) => eightBits(view.getUint8(i), 4, 8, 'unsigned-zero'),
  F8_E5M2FNUZ: () => (view, i) => eightBits(view.getUint8(i), 5, 16, 'unsigned-zero'),
  F8_E8M0: () => (view, i) => (view.getUint8(i) === 255 ? NaN : 2 ** (view.getUint8(i) - 127)),
};

function eightBits(bits: number, exponentBits: number, bias: number, special: 'ieee' | 'nan-only' | 'unsigned-zero'): number {
  const fractionBits = 7 - exponentBits;
  const sign = bits & 128 ? -1 : 1;
  const top = (1 << exponentBits) - 1;
  const exponent = (bits >> fractionBits) & top;
  const fraction = bits & ((1 << fractionBits) - 1);
  if (special === 'unsigned-zero' && bits === 128) return NaN;
  if (special === 'nan-only' && (bits & 127) === 127) return NaN;
  if (special === 'ieee' && exponent === top) return fraction === 0 ? sign * Infinity : NaN;
  const scale = 2 ** -fractionBits;
  return exponent === 0 ? sign * fraction * scale * 2 ** (1 - bias) : sign * (1 + fraction * scale) * 2 ** (exponent - bias);
}

/**
 * Values as f32, whatever the stored type; at any byte offset. F64 and wide integers are rounded to f32.
 * F32 that happens to be aligned comes back as a view of `raw.bytes`, everything else as a copy.
 * Throws FormatError for types without a number per element (F4, F6, C64, GGUF blocks).
 */
export function decodeFloats(raw: RawTensor): Float32Array {
  const { dtype, bytes } = raw;
  if (dtype === 'F32' && bytes.byteOffset % 4 === 0) return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  if (dtype === 'F32') return new Float32Array(new Uint8Array(bytes).buffer);
  return decodeInto(raw, new Float32Array(countOf(raw)));
}

/** Values as numbers without loss: integers up to 2^53, doubles; NumericError beyond. */
export const decodeNumbers = (raw: RawTensor): Float64Array => decodeInto(raw, new Float64Array(countOf(raw)));

const countOf = ({ shape }: RawTensor): number => shape.reduce((product, side) => product * side, 1);

function decodeInto<A extends Float32Array | Float64Array>(raw: RawTensor, out: A): A {
  const make = elements[raw.dtype];
  if (make === undefined) throw new FormatError(`${raw.dtype} has no plain value per element`, { dtype: raw.dtype });
  const element = make(raw);
  const view = new DataView(raw.bytes.buffer, raw.bytes.byteOffset, raw.bytes.byteLength);
  for (let i = 0; i < out.length; i++) out[i] = element(view, i);
  return out;
}

/** f32 values as the bytes of a file's type, rounded to nearest even. F32 shares memory with `values`. */
export function encodeFloats(values: Float32Array, dtype: 'F32' | 'F16' | 'BF16'): Uint8Array {
  if (dtype === 'F32') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const encode = { F16: floatToHalf, BF16: floatToBfloat }[dtype];
  if (encode === undefined) throw new ConfigError(`floats are written as F32, F16 or BF16, got '${String(dtype)}'`, { dtype });
  const words = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) words[i] = encode(values[i]!);
  return new Uint8Array(words.buffer);
}
