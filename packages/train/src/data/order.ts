import { createDraw, fillNoise } from '@niwaki/tensor';

/**
 * Order of the rows in one epoch: a permutation of 0 … count-1 sorted by addressed noise (run seed, epoch), so that any
 * epoch can be drawn at any time, on any device, without those before it.
 */
export function epochOrder(count: number, { seed, epoch }: { seed: number | bigint; epoch: number }): number[] {
  const address = createDraw(seed, epoch).at('data#shuffle');
  const keys = new Float32Array(count);
  fillNoise(keys, {
    seedLow: Number(address.seed & 0xffffffffn),
    seedHigh: Number(address.seed >> 32n),
    step: address.step,
    id: address.id,
    sample: address.sample,
    distribution: 'uniform',
    length: count,
    keep: 1,
  });
  return Array.from(keys.keys()).sort((a, b) => keys[a]! - keys[b]! || a - b);
}
