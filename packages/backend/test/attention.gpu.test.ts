import { attentionGradOp, attentionOp } from '@niwaki/tensor';
import { describe, expect, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { expectParity, floats, ints, type Host } from './parity.ts';

const missing = await gpuMissing();

type Bounds = (t: number, keys: number) => readonly [from: number, to: number];

const causal: Bounds = (t, keys) => [0, Math.min(t + 1, keys)];
const everything: Bounds = (_, keys) => [0, keys];
const window: Bounds = (t, keys) => [Math.max(0, t - 4), Math.min(t + 1, keys)];
const packedDocuments: Bounds = (t, keys) => [t < 20 ? 0 : 20, Math.min(t + 1, keys)];
const padded: Bounds = (t, keys) => (t % 3 === 0 ? [5, 5] : [1, keys - 1]);
const inTheMiddle: Bounds = (_, keys) => [100, keys - 1];
const outside: Bounds = (t, keys) => [-3, keys + t];
/** A document behind keys in front of all of them; every fourth query sees nothing, every fifth not all that is always seen. */
const behind =
  (own: number): Bounds =>
  (t, keys) =>
    t % 4 === 3 ? [own, own] : t % 5 === 4 ? [1, 2] : [own + (t % 3), Math.min(own + 3 + t, keys)];

const cases = [
  ['one query, one key', { batch: 1, time: 1, keys: 1, heads: 1, kvHeads: 1, d: 4 }, causal],
  ['causal, grouped heads', { batch: 2, time: 7, keys: 7, heads: 4, kvHeads: 2, d: 8 }, causal],
  ['causal over more rows than a workgroup', { batch: 1, time: 65, keys: 65, heads: 3, kvHeads: 1, d: 16 }, causal],
  ['everything, odd head size', { batch: 1, time: 7, keys: 65, heads: 2, kvHeads: 2, d: 7 }, everything],
  ['a sliding window', { batch: 1, time: 64, keys: 64, heads: 2, kvHeads: 1, d: 16 }, window],
  ['packed documents', { batch: 1, time: 65, keys: 65, heads: 2, kvHeads: 1, d: 16 }, packedDocuments],
  ['rows that see nothing', { batch: 2, time: 9, keys: 7, heads: 2, kvHeads: 2, d: 8 }, padded],
  ['bounds outside the keys', { batch: 1, time: 5, keys: 7, heads: 2, kvHeads: 1, d: 8 }, outside],
  ['one query over a cache', { batch: 2, time: 1, keys: 65, heads: 8, kvHeads: 2, d: 16 }, everything],
  ['one query over more keys than threads', { batch: 1, time: 1, keys: 700, heads: 6, kvHeads: 2, d: 64 }, everything],
  ['one query, odd head size', { batch: 3, time: 1, keys: 300, heads: 5, kvHeads: 1, d: 7 }, inTheMiddle],
  ['one query that sees nothing', { batch: 2, time: 1, keys: 9, heads: 2, kvHeads: 2, d: 8 }, () => [3, 3]],
  ['one query behind keys always seen', { batch: 2, time: 1, keys: 900, heads: 4, kvHeads: 2, d: 16, always: 5 }, () => [600, 880]],
  ['one query, more keys always seen than there are', { batch: 1, time: 1, keys: 9, heads: 2, kvHeads: 1, d: 8, always: 20 }, behind(2)],
  ['more query rows than one thread walks', { batch: 2, time: 200, keys: 200, heads: 3, kvHeads: 1, d: 8 }, causal],
  ['heads of 64', { batch: 1, time: 17, keys: 17, heads: 3, kvHeads: 1, d: 64 }, causal],
  ['keys always seen, right in front', { batch: 2, time: 9, keys: 20, heads: 4, kvHeads: 2, d: 8, always: 5 }, behind(5)],
  ['keys always seen, tiles away', { batch: 1, time: 70, keys: 200, heads: 2, kvHeads: 1, d: 7, always: 3 }, behind(120)],
  ['keys always seen, over several tiles', { batch: 1, time: 7, keys: 130, heads: 2, kvHeads: 1, d: 16, always: 70 }, behind(90)],
  ['more keys always seen than there are', { batch: 1, time: 7, keys: 9, heads: 2, kvHeads: 1, d: 8, always: 20 }, behind(2)],
] as const;

describe.skipIf(missing)('attention on WebGPU equals its reference', () => {
  test.each(cases)('%s', async (_, { batch, time, keys, heads, kvHeads, d, ...led }, bounds) => {
    const inputs: Record<string, Host> = {
      q: floats([batch, time, heads, d], 1, 2),
      k: floats([batch, keys, kvHeads, d], 2, 2),
      v: floats([batch, keys, kvHeads, d], 3),
      from: ints([batch, time], (i) => bounds(i % time, keys)[0]),
      to: ints([batch, time], (i) => bounds(i % time, keys)[1]),
    };
    const attrs = { scale: 1 / Math.sqrt(d), ...led };
    const [y, logSumExp] = await expectParity(attentionOp as never, inputs, attrs, 1e-5);
    expect(y!.values.every(Number.isFinite)).toBe(true);
    const backward = { ...inputs, dy: floats([batch, time, heads, d], 4), y: y!, logSumExp: logSumExp! };
    await expectParity(attentionGradOp as never, backward, attrs, 2e-5);
  });

  test('one query, heads wider than a workgroup', async () => {
    const [q, k, v] = [floats([1, 1, 1, 1100]), floats([1, 5, 1, 1100], 2), floats([1, 5, 1, 1100], 3)];
    await expectParity(attentionOp as never, { q, k, v, from: ints([1, 1], () => 0), to: ints([1, 1], () => 5) }, { scale: 0.03 }, 1e-5);
  });
});
