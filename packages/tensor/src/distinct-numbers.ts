import { ConfigError } from './errors.ts';
import { addressWords, type Noise } from './noise.ts';
import { fillNoise } from './philox.ts';

/**
 * `count` of the numbers from 0 to `total` - 1, ascending, every choice as likely as the others: those that the address
 * gives the least noise. On the host; the same on every device.
 */
export function distinctNumbers(total: number, count: number, address: Noise): Int32Array {
  if (!(Number.isInteger(count) && count >= 0 && count <= total)) {
    throw new ConfigError(`distinctNumbers: ${count} of ${total} cannot be distinct`, { total, count });
  }
  const keys = new Float32Array(total);
  fillNoise(keys, { ...addressWords(address), distribution: 'uniform', length: total, keep: 1 });
  const found = new Int32Array(count);
  if (count === 0) return found;
  // Numbers sort many times faster without a comparison of one's own; of equal keys the first belong to the choice.
  const sorted = keys.slice().sort();
  const threshold = sorted[count - 1]!;
  let ties = count - sorted.indexOf(threshold);
  let at = 0;
  for (let i = 0; at < count; i++) {
    const key = keys[i]!;
    if (key < threshold || (key === threshold && ties-- > 0)) found[at++] = i;
  }
  return found;
}
