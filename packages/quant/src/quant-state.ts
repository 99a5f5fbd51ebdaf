import { FormatError } from '@niwaki/tensor';
import { codebook4BlockSizes } from '@niwaki/weights';

/** The JSON that a bitsandbytes 4-bit matrix carries beside its tensors; keys as in the file, in the file's order. */
export interface QuantState {
  readonly quant_type: string;
  readonly blocksize: number;
  readonly dtype: 'float32' | 'float16' | 'bfloat16';
  readonly shape: readonly [out: number, in_: number];
  readonly nested_blocksize?: number;
  readonly nested_dtype?: string;
  readonly nested_offset?: number;
}

const isSide = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) > 0;

const required: Readonly<Record<string, (value: unknown) => boolean>> = {
  quant_type: (value) => value === 'nf4' || value === 'fp4',
  blocksize: (value) => codebook4BlockSizes.includes(value as number),
  dtype: (value) => value === 'float32' || value === 'float16' || value === 'bfloat16',
  shape: (value) => Array.isArray(value) && value.length === 2 && value.every(isSide) && isSide(value[0] * value[1]),
};
const nested: typeof required = {
  nested_blocksize: (value) => value === 256,
  nested_dtype: (value) => value === 'float32',
  nested_offset: (value) => Number.isFinite(value),
};

/** Reads and checks the JSON; a key we do not know could change what the bytes mean, so it is refused. */
export function parseQuantState(bytes: Uint8Array, name: string): QuantState {
  let state: Record<string, unknown>;
  try {
    state = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as Record<string, unknown>;
  } catch (cause) {
    throw new FormatError(`'${name}' is not JSON`, { name, cause });
  }
  if (typeof state !== 'object' || state === null || Array.isArray(state))
    throw new FormatError(`'${name}' is not a JSON object`, { name });
  const isNested = Object.keys(nested).some((key) => key in state);
  const rules = isNested ? { ...required, ...nested } : required;
  for (const [key, holds] of Object.entries(rules)) {
    if (!Object.hasOwn(state, key) || !holds(state[key])) {
      throw new FormatError(`'${name}' has a ${key} that we do not read: ${JSON.stringify(state[key])}`, { name, key, value: state[key] });
    }
  }
  const unknown = Object.keys(state).filter((key) => !Object.hasOwn(rules, key));
  if (unknown.length > 0) throw new FormatError(`'${name}' has keys that we do not know: ${unknown.join(', ')}`, { name, unknown });
  return state as unknown as QuantState;
}

/** The JSON as Python writes it, so that our files and those of bitsandbytes are the same bytes. */
export function writeQuantState(state: QuantState): Uint8Array {
  const entries = Object.entries(state).map(([key, value]) => {
    if (key === 'nested_offset') return `"${key}": ${pythonFloat(value as number)}`;
    return `"${key}": ${Array.isArray(value) ? `[${value.join(', ')}]` : JSON.stringify(value)}`;
  });
  return new TextEncoder().encode(`{${entries.join(', ')}}`);
}

/** repr of a Python float: the same shortest digits as ours, but always marked as a float, and with other exponents. */
export function pythonFloat(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
    const [digits, exponent] = value.toExponential().split('e') as [string, string];
    return `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, '0')}`;
  }
  const text = Object.is(value, -0) ? '-0' : String(value);
  return text.includes('.') ? text : `${text}.0`;
}
