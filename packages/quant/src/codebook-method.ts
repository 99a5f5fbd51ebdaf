import { checkFlag, checkOptions, ConfigError, dynamicMap } from '@niwaki/tensor';
import { checkBlockSize, codebook4, encodeCodebook4, rowsOf, type Codebook4Options } from '@niwaki/weights';
import { defineMethod, roundsFloats, type Method } from '@niwaki/engine';

export interface Codebook4MethodOptions {
  /** Entries of the flattened matrix that share one absmax: a power of two from 32 to 4096, default 64. */
  readonly blockSize?: number;
  /** Quantize the absmax to 8 bits as well (QLoRA's double quantization); default true. */
  readonly doubleQuant?: boolean;
  /** What the file tells other readers to widen to; default 'float32'. */
  readonly dtype?: NonNullable<Codebook4Options['dtype']>;
}

const dtypes = ['float32', 'float16', 'bfloat16'];

/** What nf4 and fp4 share: everything but the 16 values. */
export function codebook4Method(kind: 'nf4' | 'fp4', codebook: Float32Array, options: Codebook4MethodOptions): Method {
  checkOptions(kind, options, ['blockSize', 'doubleQuant', 'dtype']);
  const { blockSize = 64, doubleQuant = true, dtype = 'float32' } = options;
  checkBlockSize(blockSize);
  checkFlag(kind, 'doubleQuant', doubleQuant);
  if (!dtypes.includes(dtype)) {
    throw new ConfigError(`${kind}: dtype must be one of ${dtypes.join(', ')}, got '${String(dtype)}'`, { dtype });
  }
  return defineMethod({
    kind,
    options: { blockSize, doubleQuant, dtype },
    traits: { ...roundsFloats, gives: ['encode', 'lookup'] },
    makes: 'weight',
    validate: ({ path, weight }) => {
      if (weight === undefined) throw new ConfigError(`'${path}' stores no matrix to quantize`, { path });
    },
    make: async (site) => {
      const weight = site.weight!;
      const tables = doubleQuant ? { codebook, nestedMap: dynamicMap({ signed: true }) } : { codebook };
      const parts = await encodeCodebook4(`${site.path}.weight`, weight.shape, rowsOf(weight), { blockSize, ...tables });
      return { weight: codebook4(site.path, weight.shape, parts, { blockSize, book: kind, dtype }) };
    },
  });
}
