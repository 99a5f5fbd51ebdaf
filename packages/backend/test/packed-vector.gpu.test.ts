import { init } from '@niwaki/backend';
import { packedMatMulOp } from '@niwaki/tensor';
import type { AffineBits, PackedFormat } from '@niwaki/tensor';
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { backend, type TensorInfo } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { abilitiesOf } from '../src/webgpu/abilities.ts';
import { dispatch } from '../src/webgpu/dispatch.ts';
import { decoderOf } from '../src/webgpu/kernels/packed-decode.wgsl.ts';
import { packedVectorProduct, vectorColumns, vectorShares } from '../src/webgpu/kernels/packed-matmul.wgsl.ts';
import { fold } from '../src/webgpu/program.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { packedFixture, packedFormats, widthsOf } from './packed-fixture.ts';
import { floats, reference, type Host } from './parity.ts';

const missing = await gpuMissing();

const cases: readonly (readonly [PackedFormat, width: number, blockSize?: number, bits?: AffineBits])[] = [
  ...packedFormats.flatMap((format) => widthsOf(format).map((width) => [format, width] as const)),
  // Blocks of one run, and more runs than a workgroup has threads.
  ['codebook4', 40, 8],
  ['codebook4', 1096, 8],
  ['codebook4-nested', 2080, 16],
  ['Q4_0', 2080],
  ['Q6_K', 2304],
  ['affine', 65, 65, 3],
  ['affine-symmetric', 192, 64, 4],
  ...([2, 3, 4, 8] as const).map((bits) => ['affine', 120, 24, bits] as const),
];

describe.skipIf(missing)('products of a few rows with a packed matrix on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  const named = cases.map((one) => {
    const [format, width, blockSize, bits] = one;
    return [`${format}${blockSize ? ` in blocks of ${blockSize}` : ''}${bits ? ` of ${bits} bits` : ''}, rows of ${width}`, one] as const;
  });

  test.each(named)('%s', async (_, [format, width, blockSize, bits]) => {
    const out = 33;
    const { shape, parts } = packedFixture(format, out, width, blockSize, bits);
    const decoder = decoderOf(shape);
    const [x, aligned] = [floats([4, width]), width % 8 === 0];
    const [expected] = await reference(packedMatMulOp as never, { x, ...parts }, { ...shape, transposed: false });
    await init({ device: 'webgpu', software: true });
    const gpu = backend() as WebGPUBackend;
    const upload = ({ shape: of, values }: Host): TensorInfo =>
      gpu.makeTensorInfo([...of], values instanceof Int32Array ? 'int32' : 'float32', values as Float32Array);
    const uploaded = Object.fromEntries(Object.keys(decoder.inputs).map((name) => [name, upload(parts[name]!)]));
    let largest = 1;
    for (const v of expected!.values) largest = Math.max(largest, Math.abs(v));
    // Sums in another order, of entries that are s·q - s·z where the reference has s·(q - z).
    const tolerance = 1e-5 * 2 ** Math.max(0, (bits ?? 2) - 2);
    const { subgroups: known } = abilitiesOf(gpu);
    const ways = [
      { rows: 1, subgroups: false },
      { rows: 1, subgroups: true },
      { rows: 4, subgroups: known },
    ];
    for (const { rows, subgroups } of ways.filter((way) => known || !way.subgroups)) {
      const some = upload({ shape: [rows, width], values: x.values.slice(0, rows * width) as Float32Array });
      const program = packedVectorProduct({ decoder, aligned, rows, subgroups, ...vectorShares(decoder, width) });
      const { y } = dispatch(gpu, program, {
        inputs: { x: some, ...uploaded },
        outputs: { y: { shape: [rows, out] } },
        uniforms: { rows, columns: out, terms: width },
        groups: fold(out, vectorColumns),
      });
      const given = (await gpu.read(y.dataId)) as Float32Array;
      let worst = 0;
      given.forEach((v, i) => {
        const off = Math.abs(v - expected!.values[i]!);
        if (!(off <= worst)) worst = off;
      });
      expect(worst / largest, `${rows} rows, ${subgroups ? 'by subgroups' : 'plain'}`).toBeLessThanOrEqual(tolerance);
      gpu.disposeData(y.dataId);
      gpu.disposeData(some.dataId);
    }
    for (const { dataId } of Object.values(uploaded)) gpu.disposeData(dataId);
  });

  test('a thread takes no more runs than share their scales and fill the row', () => {
    const shares = (format: PackedFormat, width: number, blockSize = 64): object =>
      vectorShares(decoderOf({ format, out: 4, in: width, blockSize }), width);
    expect(shares('codebook4', 2048)).toEqual({ each: 2, threads: 128 });
    expect(shares('codebook4', 2040)).toEqual({ each: 1, threads: 128 });
    expect(shares('codebook4', 1024, 8)).toEqual({ each: 1, threads: 128 });
    expect(shares('Q4_K', 768)).toEqual({ each: 4, threads: 64 });
    expect(shares('Q4_1', 576)).toEqual({ each: 2, threads: 64 });
  });
});
