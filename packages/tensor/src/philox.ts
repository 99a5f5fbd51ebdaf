import type { NoiseAttributes } from './noise.ts';

/** Fills `out` with elements 0.. of an address, in the exact f32 recipe that every device follows. */
export function fillNoise(out: Float32Array, attributes: NoiseAttributes): void {
  void out;
  void attributes;
  throw new Error('internal: being written');
}
