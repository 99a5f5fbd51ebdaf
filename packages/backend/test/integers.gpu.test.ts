import { init } from '@niwaki/backend';
import { integerMatMulOp, packBytes, roundActivations, tensor2d, type AffineBits, type PackedFormat } from '@niwaki/tensor';
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { backend, type TensorInfo } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { dispatch } from '../src/webgpu/dispatch.ts';
import { integerColumns, integerProduct, integerThreads } from '../src/webgpu/kernels/integer-matmul.wgsl.ts';
import { decoderOf } from '../src/webgpu/kernels/packed-decode.wgsl.ts';
import { fold } from '../src/webgpu/program.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { packedFixture } from './packed-fixture.ts';
import { expectParity, floats, onGpu, type Host } from './parity.ts';

const missing = await gpuMissing();
/** Sums over a block are the same integers; what differs is in which order blocks are summed in f32. */
const tolerance = 3e-6;
const modes = ['int16', 'int8'] as const;

const cases: readonly (readonly [PackedFormat, out: number, width: number, blockSize?: number, bits?: AffineBits])[] = [
  ['codebook4', 33, 480, 32],
  ['codebook4-nested', 65, 96],
  ['Q4_0', 7, 32, 32],
  ['Q4_0', 65, 1184, 32],
  ['Q4_1', 65, 288, 32],
  ['Q8_0', 65, 288, 32],
  ['Q4_K', 33, 768, 256],
  ['Q6_K', 33, 768, 256],
  ['affine', 65, 288, 96, 4],
  ['affine', 33, 352, 352, 8],
  ['affine-symmetric', 65, 288, 96, 8],
];

const named = cases.map((one) => [`${one[0]}${one[4] === undefined ? '' : ` of ${one[4]} bits`} ${one[1]} x ${one[2]}`, one] as const);

/** Rows of very different sizes, a block of zeros, one of tiny numbers. */
function activations(rows: number, width: number): Host {
  const { shape, values } = floats([rows, width], 11);
  for (let i = 0; i < values.length; i++) values[i] = values[i]! * 10 ** (((i >> 5) % 5) - 2);
  if (values.length >= 96) {
    values.fill(0, 32, 64);
    values.fill(1e-38, 64, 96);
  }
  return { shape, values };
}

/** Q8_0, its scale 1, with ones on the diagonal: its product with x is what x was rounded to. */
function identity(width: number) {
  const blocks = new Uint8Array((width * width * 34) / 32);
  for (let block = 0; block < blocks.length; block += 34) blocks[block + 1] = 0x3c;
  for (let i = 0; i < width; i++) blocks[((i * width + i) >> 5) * 34 + 2 + (i & 31)] = 1;
  const words = packBytes(blocks);
  const values = words.dataSync() as Int32Array;
  words.dispose();
  return {
    shape: { format: 'Q8_0', out: width, in: width, blockSize: 32 } as const,
    parts: { blocks: { shape: [values.length], values } },
  };
}

describe.skipIf(missing)('products in integers on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each(named)('%s equals the product of what x was rounded to', async (_, [format, out, width, blockSize, bits]) => {
    const { shape, parts } = packedFixture(format, out, width, blockSize, bits);
    for (const [mode, rows] of [
      ['int8', 1],
      ['int8', 3],
      ['int16', 4],
    ] as const) {
      await expectParity(integerMatMulOp as never, { x: activations(rows, width), ...parts }, { ...shape, activations: mode }, tolerance);
    }
  });

  test.each(['codebook4', 'Q4_1', 'affine'] as const)('plain WGSL gives the same integers for %s', async (format) => {
    const [out, width] = [33, 1088];
    const { shape, parts } = packedFixture(format, out, width, 64, 8);
    const decoder = decoderOf(shape);
    const x = activations(1, width);
    const [expected] = await onGpu(integerMatMulOp as never, { x, ...parts }, { ...shape, activations: 'int8' });
    const gpu = backend() as WebGPUBackend;
    const upload = ({ shape: of, values }: Host): TensorInfo =>
      gpu.makeTensorInfo([...of], values instanceof Int32Array ? 'int32' : 'float32', values as Float32Array);
    const inputs = Object.fromEntries(Object.entries({ x, ...parts }).map(([name, host]) => [name, upload(host)]));
    const variant = { decoder, activations: 'int8', rows: 1, threads: integerThreads(width), subgroups: false, packedDots: false } as const;
    const { y } = dispatch(gpu, integerProduct(variant), {
      inputs,
      outputs: { y: { shape: [1, out] } },
      uniforms: { columns: out, terms: width },
      groups: fold(out, integerColumns),
    });
    const given = (await gpu.read(y.dataId)) as Float32Array;
    const largest = Math.max(1, ...expected!.values.map(Math.abs));
    given.forEach((v, i) => expect(Math.abs(v - expected!.values[i]!) / largest).toBeLessThan(tolerance));
    for (const { dataId } of [y, ...Object.values(inputs)]) gpu.disposeData(dataId);
  });

  test.each(modes)('rounds x to the very numbers of the reference (%s)', async (mode) => {
    const { shape, parts } = identity(160);
    const x = activations(2, 160);
    await init({ device: 'cpu' });
    const [original] = [tensor2d(x.values as Float32Array, [2, 160])];
    const rounded = roundActivations(original, mode);
    // Integers have one zero.
    const expected = rounded.dataSync().map((v) => v + 0);
    original.dispose();
    rounded.dispose();
    const [given] = await onGpu(integerMatMulOp as never, { x, ...parts }, { ...shape, activations: mode });
    expect(given!.values).toEqual(expected);
  });

  test.each([NaN, Infinity, -Infinity])('does not hide %s in x', async (wrong) => {
    const { shape, parts } = identity(64);
    const x = { shape: [1, 64], values: new Float32Array(64).fill(1) };
    x.values[40] = wrong;
    for (const mode of modes) {
      const [given] = await onGpu(integerMatMulOp as never, { x, ...parts }, { ...shape, activations: mode });
      expect(given!.values[50]).toBeNaN();
    }
  });
});
