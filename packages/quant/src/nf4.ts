import type { Method } from '@niwaki/engine';
import { nf4Codebook } from './codebooks.ts';
import { codebook4Method, type Codebook4MethodOptions } from './codebook-method.ts';

export type Nf4Options = Codebook4MethodOptions;

/**
 * 4-bit NormalFloat in blocks (QLoRA, Dettmers et al. 2023, eq. 4): byte for byte what bitsandbytes stores, so files go
 * both ways. Bits an entry: 4 + 32/blockSize, with double quantization about 4 + 8/blockSize (4.127 by default).
 * Memory while quantizing: the codes, and a few MiB of rows.
 * @throws ConfigError for a block size that is not a power of two from 32 to 4096
 * @example await quantize(model, nf4(), { at: 'all-linear' })
 */
export const nf4 = (options: Nf4Options = {}): Method => codebook4Method('nf4', nf4Codebook, options);
