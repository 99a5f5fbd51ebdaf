import { sharedBytes } from './shared.ts';

export interface SharedTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
  /** The values where the dtype is F32, F16, U8 or I64; widened to f32. */
  values(): Float32Array;
}

/** Tensors of a reference safetensors file. Trusts the file: it is a fixture, the real reader is hub's. */
export function sharedTensors(path: string): Map<string, SharedTensor> {
  const file = sharedBytes(path);
  const length = Number(new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, SharedTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const { dtype, shape, data_offsets } = entry;
    // A copy starts on a boundary that every typed array accepts.
    const bytes = file.slice(8 + length + data_offsets[0], 8 + length + data_offsets[1]);
    tensors.set(name, { dtype, shape, bytes, values: () => widened(dtype, bytes) });
  }
  return tensors;
}

function widened(dtype: string, bytes: Uint8Array): Float32Array {
  if (dtype === 'F32') return new Float32Array(bytes.buffer);
  if (dtype === 'U8') return Float32Array.from(bytes);
  if (dtype === 'F16') return Float32Array.from(new Uint16Array(bytes.buffer), half);
  if (dtype === 'BF16')
    return Float32Array.from(new Uint16Array(bytes.buffer), (bits) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!);
  throw new Error(`a fixture of dtype ${dtype} cannot be widened`);
}

function half(bits: number): number {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}
