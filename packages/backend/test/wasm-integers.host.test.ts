import {
  dispose,
  integerMatMul,
  integerMatMulOp,
  memory,
  packBytes,
  packedMatMul,
  roundActivations,
  runOp,
  tensor,
  tensor2d,
  tidy,
} from '@niwaki/tensor';
import type { Activations, AffineBits, PackedFormat, PackedShape, PackedTensors, Tensor, Tensor2D } from '@niwaki/tensor';
import { init } from '@niwaki/backend';
import { grad, sum } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { packedFixture } from './packed-fixture.ts';
import type { Host } from './parity.ts';
import { distance, kernelDistance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(11);
/** Codes and their sums over a block are the same integers; what differs is in which order blocks are summed in f32. */
const tolerance = 3e-6;
const modes = ['int16', 'int8'] as const;

const cases: readonly (readonly [PackedFormat, out: number, width: number, blockSize: number, bits?: AffineBits])[] = [
  ...(['codebook4', 'codebook4-nested'] as const).flatMap((format) =>
    [
      [7, 32, 32],
      [65, 96, 64],
      [33, 480, 128],
      [300, 544, 64],
      [9, 416, 32],
      [6, 512, 128],
    ].map(([out, width, size]) => [format, out!, width!, size!] as const),
  ),
  ...(['Q4_0', 'Q4_1', 'Q8_0'] as const).flatMap((format) =>
    [
      [7, 32],
      [65, 288],
      [301, 352],
    ].map(([out, width]) => [format, out!, width!, 32] as const),
  ),
  ...(['Q4_K', 'Q6_K'] as const).flatMap((format) =>
    [
      [7, 256],
      [301, 768],
    ].map(([out, width]) => [format, out!, width!, 256] as const),
  ),
  ...(['affine', 'affine-symmetric'] as const).flatMap((format) =>
    ([4, 8] as const).flatMap((bits) =>
      [
        [7, 32, 32],
        [65, 288, 96],
        [9, 416, 32],
        [6, 576, 64],
        [301, 352, 352],
      ].map(([out, width, size]) => [format, out!, width!, size!, bits] as const),
    ),
  ),
];

function matrix([format, out, width, blockSize, bits]: (typeof cases)[number]): { shape: PackedShape; parts: PackedTensors } {
  const { shape, parts } = packedFixture(format, out, width, blockSize, bits);
  return { shape, parts: Object.fromEntries(Object.entries(parts).map(([name, host]) => [name, upload(host)])) };
}

const upload = ({ shape, values }: Host): Tensor => tensor(values, [...shape], values instanceof Int32Array ? 'int32' : 'float32');

/** Rows of very different sizes, a block of zeros, one of tiny numbers. */
function activations(rows: number, width: number): Tensor2D {
  return tidy(() => {
    const x = random([rows, width]).dataSync().slice();
    for (let i = 0; i < x.length; i++) x[i] = x[i]! * 10 ** (((i >> 5) % 5) - 2);
    if (x.length >= 96) {
      x.fill(0, 32, 64);
      x.fill(1e-38, 64, 96);
    }
    return tensor2d(x, [rows, width]);
  });
}

const named = cases.map((one) => [`${one[0]}${one[4] === undefined ? '' : ` of ${one[4]} bits`} ${one[1]} x ${one[2]}`, one] as const);

/** Q8_0, its scale 1, with ones on the diagonal: its product with x is what x was rounded to. */
function identity(width: number): { shape: PackedShape; parts: PackedTensors } {
  const blocks = new Uint8Array((width * width * 34) / 32);
  for (let block = 0; block < blocks.length; block += 34) blocks[block + 1] = 0x3c;
  for (let i = 0; i < width; i++) blocks[((i * width + i) >> 5) * 34 + 2 + (i & 31)] = 1;
  return { shape: { format: 'Q8_0', out: width, in: width, blockSize: 32 }, parts: { blocks: packBytes(blocks) } };
}

describe.each(Object.entries(wasmBuilds))('Products in integers (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each(named)('%s equals the product of what x was rounded to', (_name, one) => {
    for (const mode of modes) {
      for (const rows of [1, 3]) {
        const { shape, parts } = matrix(one);
        const inputs = { ...(parts as { [name: string]: Tensor }), x: activations(rows, shape.in) };
        expect(kernelDistance(integerMatMulOp, inputs, { ...shape, activations: mode }, runOp), `${mode}, ${rows} rows`).toBeLessThan(
          tolerance,
        );
      }
    }
  });

  it.each(modes)('rounds x to the very bits of the reference (%s)', (mode) => {
    const { shape, parts } = identity(160);
    tidy(() => {
      const x = activations(2, 160);
      const given = integerMatMul(x, parts, shape, { activations: mode }).dataSync();
      // Integers have one zero.
      const rounded = roundActivations(x, mode)
        .dataSync()
        .map((v) => v + 0);
      expect(given).toEqual(rounded);
      expect(distance(given, x.dataSync())).toBeLessThan(mode === 'int8' ? 1 / 253 : 1 / 65_000);
      expect(distance(given, x.dataSync())).toBeGreaterThan(0);
    });
    dispose(parts as { [name: string]: Tensor });
  });

  it.each([NaN, Infinity, -Infinity])('does not hide %s in x', (wrong) => {
    const { shape, parts } = identity(64);
    tidy(() => {
      const values = new Float32Array(64).fill(1);
      values[40] = wrong;
      for (const mode of modes)
        expect(integerMatMul(tensor2d(values, [1, 64]), parts, shape, { activations: mode }).dataSync()[50]).toBeNaN();
    });
    dispose(parts as { [name: string]: Tensor });
  });

  it('is exact for more than four rows, and for a format without codes', () => {
    const same = (parts: PackedTensors, shape: PackedShape, rows: number): boolean =>
      tidy(() => {
        const x = activations(rows, shape.in);
        const exact = packedMatMul(x, parts, shape).dataSync();
        return integerMatMul(x, parts, shape, { activations: 'int8' })
          .dataSync()
          .every((v, i) => v === exact[i]);
      });
    const q4 = matrix(['Q4_1', 40, 96, 32]);
    expect(same(q4.parts, q4.shape, 4)).toBe(false);
    expect(same(q4.parts, q4.shape, 5)).toBe(true);
    const half = matrix(['F16', 40, 96, 1]);
    expect(same(half.parts, half.shape, 1)).toBe(true);
    const uneven = matrix(['codebook4', 40, 100, 64]);
    expect(same(uneven.parts, uneven.shape, 1)).toBe(true);
    for (const { parts } of [q4, half, uneven]) dispose(parts as { [name: string]: Tensor });
  });

  it('gives the gradient of the exact product', () => {
    const { shape, parts } = matrix(['affine', 40, 96, 32, 4]);
    tidy(() => {
      const x = random([2, 96]) as Tensor2D;
      const through = (mode: Activations): Float32Array =>
        grad((v) => sum(integerMatMul(v as Tensor2D, parts, shape, { activations: mode })))(x).dataSync() as Float32Array;
      expect(through('int8')).toEqual(through('exact'));
    });
    dispose(parts as { [name: string]: Tensor });
  });
});

it('gives the same bits on one thread and on two', async () => {
  for (const relaxed of [true, false]) {
    for (const one of [
      ['codebook4', 1030, 1088, 64],
      ['Q4_1', 1030, 1088, 32],
      ['affine', 1030, 1088, 64],
    ] as const) {
      for (const mode of modes) {
        const results: Float32Array[] = [];
        for (const threads of [1, 2]) {
          await useBuild({ threads, relaxed });
          const again = numbers(3);
          const { shape, parts } = matrix(one);
          const before = memory().numTensors;
          results.push(
            tidy(() => integerMatMul(again([1, shape.in]) as Tensor2D, parts, shape, { activations: mode }).dataSync() as Float32Array),
          );
          expect(memory().numTensors).toBe(before);
          dispose(parts as { [name: string]: Tensor });
        }
        expect(results[1]).toEqual(results[0]);
      }
    }
  }
});

it('gives nearly the same on cpu, which has only the reference', async () => {
  for (const one of [
    ['codebook4', 33, 96, 64],
    ['Q4_0', 33, 96, 32],
    ['affine', 33, 96, 32, 8],
  ] as const) {
    const results: Float32Array[] = [];
    for (const device of ['cpu', 'wasm'] as const) {
      await init({ device, threads: 1 });
      const again = numbers(3);
      const { shape, parts } = matrix(one);
      results.push(
        tidy(
          () =>
            integerMatMul(again([2, shape.in]) as Tensor2D, parts, shape, { activations: 'int8' })
              .dataSync()
              .slice() as Float32Array,
        ),
      );
      dispose(parts as { [name: string]: Tensor });
    }
    expect(distance(results[1]!, results[0]!)).toBeLessThan(tolerance);
  }
});
