/** Masks that other kernels draw for themselves: bit for bit those of `noise`. */
import { blocks } from './noise';

/** A mask's address and what it makes of an entry, as the caller wrote them. */
@unmanaged
export class Dropout {
  seedLow: u32;
  seedHigh: u32;
  id: u32;
  step: u32;
  tag: u32;
  threshold: u32;
  /** What a kept entry is multiplied by. */
  factor: f32;
}

/** Bytes before and after the factors of `dropFactors`. */
export const DROP_EDGE: usize = 128;

/**
 * Factors of the elements [from, from + count) of a mask to `out`, which has DROP_EDGE bytes of scratch on both sides;
 * `from` is a multiple of 16.
 */
export function dropFactors(mask: Dropout, from: u32, count: i32, out: usize): void {
  const words = out - DROP_EDGE;
  const threshold = i32x4.splat(mask.threshold);
  const factor = f32x4.splat(mask.factor);
  for (let e = 0; e < count; e += 16) {
    blocks((from + e) >> 2, mask.seedLow, mask.seedHigh, mask.id, mask.step, mask.tag, words);
    for (let w: usize = 0; w < 64; w += 16) {
      v128.store(out + w, v128.and(i32x4.lt_u(v128.load(words + w), threshold), factor));
    }
    out += 64;
  }
}
