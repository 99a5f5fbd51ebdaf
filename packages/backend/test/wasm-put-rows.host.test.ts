import { memory, putRows, putRowsOp, reshape, runOp, ShapeError, tidy } from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(23);

describe.each(Object.entries(wasmBuilds))('Rows put into a tensor (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each([
    [1, 1, 1, 0],
    [1, 64, 1, 63],
    [2, 65, 7, 58],
    [3, 1000, 64, 1],
  ])('into %i of %i: %i from %i on, beside the target or over it', (batch, length, count, at) => {
    expect(getKernel(putRowsOp.kernelName, getBackend())).toBeDefined();
    const before = memory().numTensors;
    tidy(() => {
      const inputs = { target: random([batch, length, 3, 5]), rows: random([batch, count, 3, 5]) };
      const expected = putRowsOp.reference(inputs, { at, overwrite: false })[0]!.dataSync();
      const old = inputs.target.dataSync().slice();
      expect(runOp(putRowsOp, inputs, { at, overwrite: false })[0]!.dataSync()).toEqual(expected);
      expect(inputs.target.dataSync()).toEqual(old);

      const buffers = memory().numDataBuffers;
      const written = putRows(inputs.target, inputs.rows, at, { owned: true });
      expect(memory().numDataBuffers).toBe(buffers);
      expect(written.dataId).toBe(inputs.target.dataId);
      expect(written.dataSync()).toEqual(expected);
    });
    expect(memory().numTensors).toBe(before);
  });
});

describe('What somebody else holds', () => {
  beforeAll(() => useBuild({ threads: 1 }));

  it('is not written over, nor without leave', () => {
    tidy(() => {
      const [target, rows] = [random([1, 8, 5]), random([1, 2, 5])];
      expect(putRows(target, rows, 3).dataId).not.toBe(target.dataId);
      const view = reshape(target, [8, 5]);
      const old = view.dataSync().slice();
      expect(putRows(target, rows, 3, { owned: true }).dataId).not.toBe(target.dataId);
      expect(view.dataSync()).toEqual(old);
    });
  });

  it.each([
    [[1, 3, 5], 6],
    [[1, 3, 5], -1],
    [[1, 3, 5], 0.5],
    [[2, 3, 5], 0],
    [[1, 3, 4], 0],
  ])('refuses rows of shape %j at %d of eight', (shape, at) => {
    tidy(() => {
      const [target, rows] = [random([1, 8, 5]), random(shape)];
      expect(() => putRows(target, rows, at)).toThrow(ShapeError);
    });
  });
});
