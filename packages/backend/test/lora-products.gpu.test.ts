import { init } from '@niwaki/backend';
import { loraProductGradOp, loraProductOp } from '@niwaki/tensor';
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { backend, type TensorInfo } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { dispatch } from '../src/webgpu/dispatch.ts';
import { loraDenseProduct } from '../src/webgpu/kernels/lora.wgsl.ts';
import { tileColumns, tileRows } from '../src/webgpu/kernels/tiles.wgsl.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { packedFixture } from './packed-fixture.ts';
import { expectParity, floats, type Host } from './parity.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('a frozen map and its adapter in one product on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  // Nested scales make ten buffers, which not every device binds.
  test.each([
    ['codebook4', 65, 17, 9],
    ['codebook4-nested', 192, 7, 3],
    ['Q4_K', 256, 33, 40],
    ['affine', 192, 5, 8],
  ] as const)('%s, rows of %i, %i of them, rank %i', async (format, width, rows, rank) => {
    const out = 35;
    const { shape: packed, parts } = packedFixture(format, out, width);
    const [x, a, b, dy] = [floats([rows, width], 2), floats([rank, width], 3), floats([out, rank], 4), floats([rows, out], 5)];
    const [, inner] = await expectParity(loraProductOp as never, { ...parts, x, a, b }, { scale: 0.7, unread: false, packed }, 2e-5);
    await expectParity(loraProductGradOp as never, { ...parts, dy, x, a, b, inner: inner! }, { scale: 0.7, packed }, 2e-5);
  });

  // Kernels take the largest tiles for large products only, which the references here take minutes for.
  test.each([false, true])('the largest tiles, transposed %s', async (transposed) => {
    const [rows, terms, columns, rank] = [130, 37, 259, 19];
    const tiles = { rowsEach: 8, columnsEach: 8, depth: 16 } as const;
    const x = floats([rows, terms]);
    const weight = floats(transposed ? [terms, columns] : [columns, terms], 2);
    const gpu = backend() as WebGPUBackend;
    const upload = ({ shape, values }: Host): TensorInfo => gpu.makeTensorInfo([...shape], 'float32', values as Float32Array);
    const [inner, factor] = [floats([rows, rank], 5), floats(transposed ? [rank, columns] : [columns, rank], 4)];
    const inputs = { a: upload(x), b: upload(weight), inner: upload(inner), factor: upload(factor) };
    const { y } = dispatch(gpu, loraDenseProduct({ transposed, tiles }), {
      inputs,
      outputs: { y: { shape: [rows, columns] } },
      uniforms: { rows, columns, terms, rank, scale: 0.7 },
      groups: [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles))],
    });
    const given = (await gpu.read(y.dataId)) as Float32Array;
    let worst = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        let sum = 0;
        for (let k = 0; k < terms; k++)
          sum += x.values[row * terms + k]! * weight.values[transposed ? k * columns + column : column * terms + k]!;
        for (let r = 0; r < rank; r++)
          sum += 0.7 * inner.values[row * rank + r]! * factor.values[transposed ? r * columns + column : column * rank + r]!;
        worst = Math.max(worst, Math.abs(given[row * columns + column]! - sum));
      }
    }
    expect(worst).toBeLessThan(2e-5);
    for (const { dataId } of [y, ...Object.values(inputs)]) gpu.disposeData(dataId);
  });
});
