import type { Method } from '@niwaki/engine';
import { fp4Codebook } from './codebooks.ts';
import { codebook4Method, type Codebook4MethodOptions } from './codebook-method.ts';

export type Fp4Options = Codebook4MethodOptions;

/**
 * 4-bit floats in blocks as bitsandbytes has them (not the MXFP4 of OCP): for files that use them; nf4 loses less.
 * Bits an entry as for `nf4`.
 * @throws ConfigError for a block size that is not a power of two from 32 to 4096
 */
export const fp4 = (options: Fp4Options = {}): Method => codebook4Method('fp4', fp4Codebook, options);
