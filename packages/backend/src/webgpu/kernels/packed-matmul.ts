import type { TensorInfo } from '@tensorflow/tfjs-core';
import { packedMatMulOp, packedRowsOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { dotColumns, mostVectorRows } from './mat-vec.wgsl.ts';
import { decoderOf, runLength, type Decoder } from './packed-decode.wgsl.ts';
import { packedLookup, packedProduct, packedVectorProduct } from './packed-matmul.wgsl.ts';
import { tileColumns, tileRows, tilesFor } from './tiles.wgsl.ts';

export const packedMatMulKernel: Kernel = kernelOf(packedMatMulOp, ({ x, ...parts }, { transposed, ...shape }, backend) => {
  const rows = x.shape[0]!;
  const decoder = decoderOf(shape);
  const aligned = shape.in % runLength === 0;
  const columns = transposed ? shape.in : shape.out;
  const inputs = { x, ...ordered(decoder, parts as Record<string, TensorInfo>) };
  const outputs = { y: { shape: [rows, columns] } };
  const uniforms = { rows, columns, terms: transposed ? shape.out : shape.in };
  if (rows <= mostVectorRows && !transposed) {
    const program = packedVectorProduct({ decoder, aligned, rows });
    return [dispatch(backend, program, { inputs, outputs, uniforms, groups: fold(shape.out, dotColumns) }).y];
  }
  const tiles = tilesFor(rows, columns);
  const groups = [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles))] as const;
  return [dispatch(backend, packedProduct({ decoder, aligned, transposed, tiles }), { inputs, outputs, uniforms, groups }).y];
});

export const packedRowsKernel: Kernel = kernelOf(packedRowsOp, ({ ids, ...parts }, shape, backend) => {
  const rows = sizeOf(ids);
  const decoder = decoderOf(shape);
  const { y } = dispatch(backend, packedLookup(decoder), {
    inputs: { ids, ...ordered(decoder, parts as Record<string, TensorInfo>) },
    outputs: { y: { shape: [rows, shape.in] } },
    uniforms: { count: rows * shape.in, width: shape.in },
    groups: fold(rows * shape.in, lanes),
  });
  return [y];
});

const ordered = (decoder: Decoder, parts: Readonly<Record<string, TensorInfo>>): Record<string, TensorInfo> =>
  Object.fromEntries(Object.keys(decoder.inputs).map((name) => [name, parts[name]!]));
