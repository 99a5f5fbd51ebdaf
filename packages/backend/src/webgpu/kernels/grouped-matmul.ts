import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { DeviceError, groupedMatMulGradOp, groupedMatMulOp, packedGroupedMatMulOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { groupedGradient, groupedProduct, packedGroupedProduct, rowSlots, sizeName } from './grouped-matmul.wgsl.ts';
import { decoderOf, runLength, type Decoder } from './packed-decode.wgsl.ts';
import { ordered } from './packed-matmul.ts';
import { tileColumns, tileRows, tilesFor, type Tiles } from './tiles.wgsl.ts';

export const groupedMatMulKernel: Kernel = kernelOf(groupedMatMulOp, ({ x, w, runs }, { transposed }, backend) => {
  const [rows, terms] = x.shape as [number, number];
  const [count, out, width] = w.shape as [number, number, number];
  const columns = transposed ? width : out;
  const tiles = tilesOfRuns(rows, count, columns);
  return [
    dispatch(backend, groupedProduct({ transposed, tiles }), {
      inputs: { x, w, runs },
      outputs: { y: { shape: [rows, columns] } },
      uniforms: { rows, columns, terms, count },
      groups: [Math.ceil(columns / tileColumns(tiles)), rowSlots(rows, count, tiles)],
    }).y,
  ];
});

export const groupedMatMulGradKernel: Kernel = kernelOf(groupedMatMulGradOp, ({ dy, x, runs }, _, backend) => {
  const count = sizeOf(runs) - 1;
  const [all, rows] = dy.shape as [number, number];
  const columns = x.shape[1]!;
  const tiles = tilesFor(rows, columns);
  return [
    dispatch(backend, groupedGradient(tiles), {
      inputs: { dy, x, runs },
      outputs: { y: { shape: [count, rows, columns] } },
      uniforms: { rows, columns, all },
      groups: [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles)), count],
    }).y,
  ];
});

export const packedGroupedMatMulKernel: Kernel = kernelOf(
  packedGroupedMatMulOp,
  ({ x, runs, ...parts }, { transposed, ...shape }, backend) => {
    const count = sizeOf(runs) - 1;
    const rows = x.shape[0]!;
    const [terms, columns] = transposed ? [shape.out, shape.in] : [shape.in, shape.out];
    const decoder = decoderOf(shape);
    expectBindings(backend, decoder, shape.format);
    const stored = ordered(decoder, parts as Record<string, TensorInfo>);
    const sizes = Object.fromEntries(Object.entries(stored).map(([name, part]) => [sizeName(name), sizeOf(part) / count]));
    const tiles = tilesOfRuns(rows, count, columns);
    const program = packedGroupedProduct({ decoder, aligned: shape.in % runLength === 0, transposed, tiles });
    return [
      dispatch(backend, program, {
        inputs: { x, runs, ...stored },
        outputs: { y: { shape: [rows, columns] } },
        uniforms: { rows, columns, terms, count, ...sizes },
        groups: [Math.ceil(columns / tileColumns(tiles)), rowSlots(rows, count, tiles)],
      }).y,
    ];
  },
);

/** Tiles by the rows that a run has on average; the largest only where it has as many. */
function tilesOfRuns(rows: number, count: number, columns: number): Tiles {
  const average = Math.ceil(rows / count);
  return average >= 128 ? tilesFor(rows, columns) : tilesFor(average, columns);
}

/** x, the runs and y beside the parts: one more than the eight that every device binds, where scales are quantized too. */
function expectBindings(backend: WebGPUBackend, { inputs }: Decoder, format: string): void {
  const { device } = backend as unknown as { readonly device: GPUDevice };
  const [needed, most] = [Object.keys(inputs).length + 3, device.limits.maxStorageBuffersPerShaderStage];
  if (needed <= most) return;
  throw new DeviceError(`a stack of ${format} matrices takes ${needed} buffers at a time, this GPU binds ${most}`, {
    format,
    needed,
    limit: most,
    help: 'Quantize the matrices without nested scales.',
  });
}
