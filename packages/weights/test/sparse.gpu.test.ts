import { describe, expect, it } from 'vitest';
import { denseParameter, dispose, matMul, packBits, packBytes, tensor2d, unpackFields, type Tensor } from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { createCall, csr, denseWeight, disposeWeight, masked, nOfM, packCsr, packMask, packNOfM, type Weight } from '../src/index.ts';

const missing = await gpuMissing();

const values = async (t: Tensor): Promise<number[]> => {
  const host = Array.from(await t.data(), (v) => v + 0);
  t.dispose();
  return host;
};
const shape: [number, number] = [12, 32];
const source = Array.from({ length: 384 }, (_, i) => Math.fround(Math.sin(0.7 * i + 1)));
const kept = source.map((_, e) => (e % 4 === (e >> 2) % 3 || e % 4 === 3 ? 1 : 0));
const pruned = source.map((value, e) => value * kept[e]! + 0);
const inner = (path: string, host: ArrayLike<number>, of: [number, number]): Weight =>
  denseWeight(denseParameter(`${path}.weight`, tensor2d(Float32Array.from(host), of), { role: 'values' }));

const kinds: [string, () => Weight][] = [
  ['masked', () => masked('m', inner('m', source, shape), packMask(kept))],
  [
    'n-of-m',
    () => {
      const { values: host, index } = packNOfM('m', pruned, shape, { n: 2, m: 4, kept });
      return nOfM('m', shape, { values: inner('m.values', host, [12, 16]), index }, { n: 2, m: 4 });
    },
  ],
  [
    'csr',
    () => {
      const { values: host, columns, rows } = packCsr(pruned, shape, kept);
      return csr('m', shape, { values: inner('m.values', host, [1, host.length]), columns, rows });
    },
  ],
];

describe.skipIf(missing)('on WebGPU', () => {
  it.each([1, 2, 3, 4, 5, 6, 8, 16])('fields of %i bits come out of words', async (bits) => {
    const fields = Array.from({ length: 1003 }, (_, i) => (i * 7919 + (i % 3) * 40503) % 2 ** bits);
    const words = packBytes(packBits(fields, { bits }));
    expect(await values(unpackFields(words, { bits, count: 1003 }))).toEqual(fields);
    words.dispose();
  });

  it.each(kinds)('a sparse weight is the matrix that it stands for (%s)', async (_, make) => {
    const weight = make();
    expect(await values(weight.dense())).toEqual(pruned);
    const x = tensor2d(source.slice(0, 96), [3, 32]);
    const w = tensor2d(pruned, shape);
    const expected = await values(matMul(x, w, false, true));
    (await values(weight.apply(x, createCall({ batch: {} })))).forEach((y, i) => expect(y).toBeCloseTo(expected[i]!, 4));
    const again = await weight.encode!(w, 'm');
    expect(await values(again.dense())).toEqual(pruned);
    dispose([x, w]);
    disposeWeight(again);
    disposeWeight(weight);
  });
});
