import { addN, mean, memory, ones, sum, tensor, tidy } from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(19);

describe.each(Object.entries(wasmBuilds))('Sums (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  const shape = [3, 7, 5, 33];
  const cases = [undefined, 0, 1, 2, 3, [0, 1], [2, 3], [0, 2], [1, 3], [0, 3], [0, 1, 2, 3], -1];

  for (const axis of cases) {
    it(`over ${axis === undefined ? 'all axes' : `axes [${axis}]`} of [${shape}] equal f64 sums, as do means`, () => {
      tidy(() => {
        const x = random(shape);
        const values = x.dataSync();
        const axes = axis === undefined ? [0, 1, 2, 3] : [axis].flat().map((a) => (a < 0 ? a + 4 : a));
        const kept = shape.map((side, i) => (axes.includes(i) ? 1 : side));
        const wanted = new Float64Array(kept.reduce((a, b) => a * b, 1));
        for (let i = 0; i < values.length; i++) {
          let rest = i;
          let at = 0;
          let stride = 1;
          for (let d = 3; d >= 0; d--) {
            if (!axes.includes(d)) at += (rest % shape[d]!) * stride;
            stride *= kept[d]!;
            rest = Math.floor(rest / shape[d]!);
          }
          wanted[at]! += values[i]!;
        }
        const count = values.length / wanted.length;
        expect(distance(sum(x, axis).dataSync(), wanted)).toBeLessThan(1e-6);
        expect(
          distance(
            mean(x, axis).dataSync(),
            wanted.map((v) => v / count),
          ),
        ).toBeLessThan(1e-6);
        expect(sum(x, axis, true).shape).toEqual(kept);
        expect(mean(x, axis).shape).toEqual(shape.filter((_, i) => !axes.includes(i)));
      });
    });
  }

  it('of several tensors run in their order, the last entries too', () => {
    const before = memory().numTensors;
    for (const size of [1, 3, 4, 4099, 9001]) {
      tidy(() => {
        const terms = Array.from({ length: 6 }, () => random([size]));
        const values = terms.map((term) => term.dataSync() as Float32Array);
        const wanted = values.reduce((sum, each) => sum.map((v, i) => Math.fround(v + each[i]!)));
        expect(addN(terms).dataSync()).toEqual(wanted);
      });
    }
    tidy(() => {
      expect(Array.from(addN([tensor([1, 2], [2], 'int32'), tensor([3, 4], [2], 'int32')]).dataSync())).toEqual([4, 6]);
    });
    expect(memory().numTensors).toBe(before);
  });

  it('stay exact over a million equal entries, along rows and along columns', () => {
    const before = memory().numTensors;
    tidy(() => {
      const x = ones([1 << 20]);
      expect(sum(x).dataSync()[0]).toBe(1 << 20);
      expect(
        distance(sum(tensor(new Float32Array(3 << 20).fill(0.1), [1 << 20, 3]), 0).dataSync(), [104857.6, 104857.6, 104857.6]),
      ).toBeLessThan(2e-5);
      expect(Array.from(sum(tensor([1, 2, 3], [3], 'int32')).dataSync())).toEqual([6]);
      expect(sum(tensor([], [0, 3], 'float32'), 0).shape).toEqual([3]);
      expect(Array.from(sum(tensor([1, 2, 3]), []).dataSync())).toEqual([1, 2, 3]);
    });
    expect(memory().numTensors).toBe(before);
  });
});
