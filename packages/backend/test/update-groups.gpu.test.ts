import { init } from '@niwaki/backend';
import { updateGroupsOp } from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { beforeAll, describe, expect, test } from 'vitest';
import { floats, ints, onGpu, reference, type Host } from './parity.ts';

const missing = await gpuMissing();

const bytesOf = ({ values }: Host, count: number): Uint8Array => new Uint8Array(values.buffer, values.byteOffset, count);

describe.skipIf(missing)('an update of 8-bit codes on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each(
    [
      [1, 4],
      [7, 8],
      [64, 64],
      [65, 16],
      [1000, 24],
      [9000, 256],
    ].flatMap(([size, groupSize]) => [false, true].map((stochastic) => [size!, groupSize!, stochastic] as const)),
  )('equals the reference, %i entries in groups of %i, by chance: %s', async (size, groupSize, stochastic) => {
    const groups = Math.ceil(size / groupSize);
    const stored = {
      codes: ints([Math.ceil(size / 4)], (i) => Math.imul(i + 1, 0x9e3779b9)),
      scales: { shape: [groups], values: floats([groups], 3).values.map((value) => Math.abs(value) / 100) },
      zeros: ints([Math.ceil(groups / 4)], (i) => Math.imul(i + 5, 0x85ebca6b)),
      update: floats([size], 2, 0.3),
    };
    const attributes = { length: size, groupSize, shrink: 0.75, stochastic, seedLow: 7, seedHigh: 1, step: 3, id: 9, sample: 2 };
    const [codes, scales, zeros] = await onGpu(updateGroupsOp as never, stored, attributes);
    const [wantedCodes, wantedScales, wantedZeros] = await reference(updateGroupsOp as never, stored, attributes);
    scales!.values.forEach((value, i) => expect(Math.abs(value / wantedScales!.values[i]! - 1)).toBeLessThan(1e-5));
    expect(bytesOf(zeros!, groups)).toEqual(bytesOf(wantedZeros!, groups));
    // Divisions and sums are good to a few units in the last place there: a value near a boundary may fall on its other side.
    const given = bytesOf(codes!, size);
    const off = [...bytesOf(wantedCodes!, size)].map((code, e) => Math.abs(code - given[e]!));
    expect(Math.max(...off)).toBeLessThanOrEqual(1);
    expect(off.filter((distance) => distance > 0).length).toBeLessThanOrEqual(size / 500);
  });
});
