import { ConfigError } from './errors.ts';
import type { Noise } from './noise.ts';
import { fillNoise } from './philox.ts';

/**
 * `count` of the numbers from 0 to `total` - 1, ascending, every choice as likely as the others: those that the address
 * gives the least noise. On the host; the same on every device.
 */
export function distinctNumbers(total: number, count: number, { seed, step, id, sample }: Noise): Int32Array {
  if (!(Number.isInteger(count) && count >= 0 && count <= total)) {
    throw new ConfigError(`distinctNumbers: ${count} of ${total} cannot be distinct`, { total, count });
  }
  const keys = new Float32Array(total);
  fillNoise(keys, {
    seedLow: Number(seed & 0xffffffffn),
    seedHigh: Number((seed >> 32n) & 0xffffffffn),
    step,
    id,
    sample,
    distribution: 'uniform',
    length: total,
    keep: 1,
  });
  const order = Int32Array.from(keys, (_, i) => i).sort((a, b) => keys[a]! - keys[b]! || a - b);
  return order.slice(0, count).sort();
}
