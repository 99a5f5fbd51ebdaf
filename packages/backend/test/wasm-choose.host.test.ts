import { allFinite, choose, memory, scalar, tensor, tidy } from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(13);

describe.each(Object.entries(wasmBuilds))('The gate of a step (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it('finds one infinity or NaN anywhere', () => {
    for (const length of [1, 7, 64, 200_001]) {
      for (const bad of [NaN, Infinity, -Infinity]) {
        for (const at of [0, length >> 1, length - 1]) {
          tidy(() => {
            const values = random([length], 3e38).dataSync();
            expect(allFinite(tensor(values)).dataSync()[0]).toBe(1);
            values[at] = bad;
            expect(allFinite(tensor(values)).dataSync()[0]).toBe(0);
          });
        }
      }
    }
    tidy(() => {
      expect(allFinite(tensor([], [0], 'float32')).dataSync()[0]).toBe(1);
    });
  });

  it('keeps either value bit for bit, and the memory of one only', () => {
    const before = memory().numTensors;
    tidy(() => {
      const [next, old] = [tensor([1, NaN, -0]), tensor([4, 5, Infinity])];
      const chosen = choose(scalar(0), next, old);
      next.dispose();
      old.dispose();
      expect(Array.from(chosen.dataSync())).toEqual([4, 5, Infinity]);
      expect(Object.is(choose(scalar(1), tensor([-0]), tensor([1])).dataSync()[0], -0)).toBe(true);
    });
    expect(memory().numTensors).toBe(before);
  });
});
