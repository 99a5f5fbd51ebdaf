import { init } from '@niwaki/backend';
import { codedAdamOp } from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { beforeAll, describe, expect, test } from 'vitest';
import { floats, ints, onGpu, overwriting, reference, type Host } from './parity.ts';

const missing = await gpuMissing();

const bytesOf = ({ values }: Host, count: number): Uint8Array => new Uint8Array(values.buffer, values.byteOffset, count);

describe.skipIf(missing)('Adam on 8-bit moments on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each(
    [
      [[1], 256],
      [[7], 4],
      [[65], 64],
      [[10, 100], 256],
      [[3, 300], 1024],
      [[9001], 256],
    ].flatMap(([shape, blockSize]) => [true, false].map((guard) => [shape as number[], blockSize as number, guard] as const)),
  )('equals the reference, [%s] in blocks of %i, guarded: %s', async (shape, blockSize, guard) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const blocks = Math.ceil(size / blockSize);
    const scales = (seed: number): Host => ({ shape: [blocks], values: floats([blocks], seed).values.map((v) => Math.abs(v) + 0.1) });
    const moments = {
      momentumWords: ints([Math.ceil(size / 4)], (i) => Math.imul(i + 1, 0x9e3779b9)),
      momentumScales: scales(3),
      varianceWords: ints([Math.ceil(size / 4)], (i) => Math.imul(i + 5, 0x85ebca6b)),
      varianceScales: scales(4),
    };
    const attributes = { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize, guard, overwrite: false };
    const inputs = (ok: number) => ({
      gradient: floats(shape, 2),
      ...moments,
      factors: { shape: [3], values: new Float32Array([0.19, 0.002, ok]) },
    });
    const given = await onGpu(codedAdamOp as never, inputs(1), attributes);
    const wanted = await reference(codedAdamOp as never, inputs(1), attributes);
    expect(given.map((each) => each.shape)).toEqual(wanted.map((each) => each.shape));
    for (const which of [0, 2, 4]) {
      // A direction whose terms all but cancel is as good as they are.
      const least = which === 0 ? 0.05 : 0;
      const error = (value: number, i: number): number =>
        Math.abs(value - wanted[which]!.values[i]!) / Math.max(least, Math.abs(wanted[which]!.values[i]!));
      expect(Math.max(...given[which]!.values.map(error))).toBeLessThan(2e-5);
    }
    // Divisions and sums are good to a few units in the last place there: a value near a boundary may fall on its other side.
    for (const which of [1, 3]) {
      const codes = bytesOf(given[which]!, size);
      const off = [...bytesOf(wanted[which]!, size)].map((code, i) => Math.abs(code - codes[i]!));
      expect(Math.max(...off)).toBeLessThanOrEqual(1);
      expect(off.filter((distance) => distance > 0).length).toBeLessThan(3);
    }
    const names = ['gradient', ...Object.keys(moments)];
    const over = await overwriting(codedAdamOp as never, inputs(1), names, attributes);
    expect(over).toEqual({ results: given, inPlace: true });
    const refused = await onGpu(codedAdamOp as never, inputs(0), attributes);
    const kept = await overwriting(codedAdamOp as never, inputs(0), names, attributes);
    Object.values(moments).forEach(({ values }, i) => {
      expect(refused[i + 1]!.values).toEqual(values);
      expect(kept.results[i + 1]!.values).toEqual(values);
    });
  });
});
