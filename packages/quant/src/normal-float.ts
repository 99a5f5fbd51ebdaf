import { checkOptions, ConfigError, type AffineBits } from '@niwaki/tensor';
import { defineMethod, roundsFloats, type Method } from '@niwaki/engine';
import { checkNormalFloat, checkNormalFloatShape, normalFloatOf, rowsOf, type NormalFloatOptions } from '@niwaki/weights';

export interface NormalFloatMethodOptions {
  /** Bits of one code: 2, 3, 4 or 8; default 4. */
  readonly bits?: AffineBits;
  /** Bits of the scale of one block: 2, 3, 4 or 8; default 8. */
  readonly scaleBits?: AffineBits;
  /** What the scale of a group of blocks is rounded to; default 'float32'. */
  readonly scaleType?: 'float32' | 'float16' | 'bfloat16';
  /** Entries of the flattened matrix that share a block's scale; default 64. */
  readonly blockSize?: number;
  /** Blocks that share a group's scale; default 256. blockSize · groupSize divides the matrix. */
  readonly groupSize?: number;
}

/**
 * NormalFloat of 2, 3, 4 or 8 bits, its blocks' scales stored as integers: the format of LQ-LoRA (Guo et al. 2023, 2311.12023),
 * finer to choose from than `nf4`, for `lqLora` to spread a budget of bits over. Bits an entry: bits + scaleBits / blockSize +
 * (16 or 32) / (blockSize · groupSize): 4.127 by default, from 2.03 to 8.6. No file format of others holds it. Products build the
 * whole matrix first: slower than `nf4`, whose kernels decode as they multiply.
 * Memory while quantizing: 4 bytes an entry of one matrix on the host.
 * @throws ConfigError for options out of range, or a matrix that groups of blocks do not divide
 * @example lora({ rank: 64, init: lqLora({ quantizers: [normalFloat({ bits: 2 }), normalFloat({ bits: 3 }), normalFloat()], bits: 2.75 }) })
 */
export function normalFloat(options: NormalFloatMethodOptions = {}): Method {
  checkOptions('normalFloat', options, ['bits', 'scaleBits', 'scaleType', 'blockSize', 'groupSize']);
  const { bits = 4, scaleBits = 8, scaleType = 'float32', blockSize = 64, groupSize = 256 } = options;
  const named: NormalFloatOptions = { bits, scaleBits, scaleType, blockSize, groupSize };
  checkNormalFloat('normalFloat', named);
  return defineMethod({
    kind: 'normal-float',
    options: { ...named },
    traits: { ...roundsFloats, gives: ['encode', 'lookup'] },
    makes: 'weight',
    validate: ({ path, weight }) => {
      if (weight === undefined) throw new ConfigError(`'${path}' stores no matrix to quantize`, { path });
      checkNormalFloatShape(path, weight.shape, named);
    },
    make: async ({ path, weight }) => ({ weight: await normalFloatOf(path, weight!.shape, rowsOf(weight!), named) }),
  });
}
