import { memory, putRows, putRowsOp, reshape, runOp, ShapeError, tensor1d, tidy } from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(23);
const place = (at: number) => tensor1d([at], 'int32');

describe.each(Object.entries(wasmBuilds))('Rows put into a tensor (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each([
    [1, 1, 1, 0, 0],
    [1, 64, 1, 63, 0],
    [2, 65, 7, 50, 8],
    [3, 1000, 64, 1, 5],
    // What does not fit changes nothing.
    [2, 65, 7, 59, 0],
    [2, 65, 7, -1, 0],
    [1, 64, 1, 60, 4],
  ])('into %i of %i: %i from %i on behind %i, beside the target or over it', (batch, length, count, at, lead) => {
    expect(getKernel(putRowsOp.kernelName, getBackend())).toBeDefined();
    const before = memory().numTensors;
    tidy(() => {
      const inputs = { target: random([batch, length, 3, 5]), rows: random([batch, count, 3, 5]), at: place(at) };
      let expected: ArrayLike<number> = [];
      tidy(() => {
        expected = putRowsOp.reference(inputs, { lead, overwrite: false })[0]!.dataSync().slice();
      });
      const old = inputs.target.dataSync().slice();
      expect(runOp(putRowsOp, inputs, { lead, overwrite: false })[0]!.dataSync()).toEqual(expected);
      expect(inputs.target.dataSync()).toEqual(old);

      const buffers = memory().numDataBuffers;
      const written = putRows(inputs.target, inputs.rows, inputs.at, { lead, owned: true });
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
      const [target, rows, at] = [random([1, 8, 5]), random([1, 2, 5]), place(3)];
      expect(putRows(target, rows, at).dataId).not.toBe(target.dataId);
      const view = reshape(target, [8, 5]);
      const old = view.dataSync().slice();
      expect(putRows(target, rows, at, { owned: true }).dataId).not.toBe(target.dataId);
      expect(view.dataSync()).toEqual(old);
    });
  });

  it.each([
    [[1, 9, 5], 0],
    [[1, 3, 5], 6],
    [[2, 3, 5], 0],
    [[1, 3, 4], 0],
  ])('refuses rows of shape %j behind %d of eight', (shape, lead) => {
    tidy(() => {
      const [target, rows] = [random([1, 8, 5]), random(shape)];
      expect(() => putRows(target, rows, place(0), { lead })).toThrow(ShapeError);
    });
  });

  it('refuses a place that is no whole number on the device', () => {
    tidy(() => {
      const [target, rows] = [random([1, 8, 5]), random([1, 2, 5])];
      expect(() => putRows(target, rows, tensor1d([0]))).toThrow(/float32/);
      expect(() => putRows(target, rows, tensor1d([0, 1], 'int32'))).toThrow(ShapeError);
    });
  });
});
