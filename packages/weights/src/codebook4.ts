import {
  ConfigError,
  denseParameter,
  packBytes,
  tensor1d,
  type PackedParts,
  type PackedShape,
  type Parameter,
  type Role,
} from '@niwaki/tensor';
import { encodeCodebook4 } from './encode-codebook4.ts';
import { expectLength, packedReads } from './packed.ts';
import { rowsOfTensor } from './rows.ts';
import type { Weight } from './weight.ts';

export interface Codebook4Options {
  /** Entries of the flattened matrix that share one absmax; a power of two from 32 to 4096. */
  readonly blockSize: number;
  /** Name of the codebook, for files: 'nf4', 'fp4'. The values come with the parts. */
  readonly book: string;
  /** What other readers widen to; ours widens to f32. */
  readonly dtype?: 'float32' | 'float16' | 'bfloat16';
}

export const codebook4BlockSizes: readonly number[] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/** Values of absmax that share one second-level scale. */
export const nestedBlockSize = 256;

/**
 * Four-bit codes into a codebook of 16 values, times an absmax per block of the flattened matrix (QLoRA, Dettmers et al.
 * 2023), in the byte order of bitsandbytes. Bytes an entry: 0.5 + 4/blockSize, or with nested absmax
 * 0.5 + 1/blockSize + 4/(256·blockSize), and about 1.1 kB of tables a matrix.
 * @param path module path: the parts are named `path.weight`, `path.weight.absmax`, … as in the files
 * @param shape [out, in]
 * @param parts as `PackedParts` describes; nested where `nestedMap` is there
 */
export function codebook4(path: string, shape: readonly [number, number], parts: PackedParts, options: Codebook4Options): Weight {
  const { blockSize, book, dtype = 'float32' } = options;
  checkBlockSize(blockSize);
  const nested = parts.nestedMap !== undefined;
  checkParts(path, shape, parts, blockSize);
  const packed: PackedShape = { format: nested ? 'codebook4-nested' : 'codebook4', out: shape[0], in: shape[1], blockSize };
  const floats = (name: string, values: Float32Array, role: Role): Parameter => denseParameter(name, tensor1d(values), { role });
  const root = `${path}.weight`;
  const codes = denseParameter(root, packBytes(parts.codes!), {
    role: 'codes',
    shape,
    file: { dtype: 'U8', shape: [parts.codes!.length, 1], bytes: parts.codes!.length },
  });
  // The codebook is shared by files and devices alike; nothing trains it.
  const codebook = floats(`${root}.quant_map`, parts.codebook!, 'statistic');
  if (!nested) {
    const absmax = floats(`${root}.absmax`, parts.absmax as Float32Array, 'scale');
    return assembled(path, packed, { book, dtype }, { codes, codebook, absmax }, parts);
  }
  const bytes = parts.absmax as Uint8Array;
  return assembled(
    path,
    packed,
    { book, dtype },
    {
      codes,
      codebook,
      absmax: denseParameter(`${root}.absmax`, packBytes(bytes), {
        role: 'codes',
        shape: [bytes.length],
        file: { dtype: 'U8', shape: [bytes.length], bytes: bytes.length },
      }),
      nestedMap: floats(`${root}.nested_quant_map`, parts.nestedMap!, 'statistic'),
      nestedAbsmax: floats(`${root}.nested_absmax`, parts.nestedAbsmax!, 'scale'),
      nestedOffset: floats(`${root}.nested_offset`, parts.nestedOffset!, 'scale'),
    },
    parts,
  );
}

type Parameters = { readonly [K in keyof PackedParts]: Parameter };

/** The tables stay on the host beside the device's copies: encoding again needs them, and they are about a kilobyte. */
function assembled(
  path: string,
  packed: PackedShape,
  named: Required<Pick<Codebook4Options, 'book' | 'dtype'>>,
  parameters: Parameters,
  { codebook, nestedMap }: PackedParts,
): Weight {
  const tables = { codebook: codebook!.slice(), ...(nestedMap === undefined ? {} : { nestedMap: nestedMap.slice() }) };
  const { blockSize } = packed;
  const shape = [packed.out, packed.in] as const;
  return {
    kind: 'codebook4',
    options: { blockSize, ...named, nested: nestedMap !== undefined },
    shape,
    parts: Object.fromEntries(Object.values(parameters).map((parameter) => [parameter.path.slice(path.length + 1), parameter])),
    ...packedReads(packed, parameters),
    encode: async (dense, target) => {
      const parts = await encodeCodebook4(target, [dense.shape[0], dense.shape[1]], rowsOfTensor(dense), { ...tables, blockSize });
      return codebook4(target, [dense.shape[0], dense.shape[1]], parts, { blockSize, ...named });
    },
  };
}

export function checkBlockSize(blockSize: number): void {
  if (codebook4BlockSizes.includes(blockSize)) return;
  throw new ConfigError(`blockSize must be one of ${codebook4BlockSizes.join(', ')}, got ${blockSize}`, {
    blockSize,
    help: '64 is the usual one.',
  });
}

function checkParts(path: string, [out, width]: readonly [number, number], parts: PackedParts, blockSize: number): void {
  const entries = out * width;
  const blocks = Math.ceil(entries / blockSize);
  const root = `${path}.weight`;
  expectLength(root, parts.codes, Math.ceil(entries / 2));
  expectLength(`${root}.quant_map`, parts.codebook, 16);
  expectLength(`${root}.absmax`, parts.absmax, blocks);
  if (parts.nestedMap === undefined) return;
  expectLength(`${root}.nested_quant_map`, parts.nestedMap, 256);
  expectLength(`${root}.nested_absmax`, parts.nestedAbsmax, Math.ceil(blocks / nestedBlockSize));
  expectLength(`${root}.nested_offset`, parts.nestedOffset, 1);
}
