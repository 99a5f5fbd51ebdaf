import type { TensorInfo } from '@tensorflow/tfjs-core';
import { packedMatMulOp, packedRowsOp } from '@niwaki/tensor';
import { abilitiesOf } from '../abilities.ts';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { mostVectorRows } from './mat-vec.wgsl.ts';
import { decoderOf, runLength, type Decoder } from './packed-decode.wgsl.ts';
import { lookupEach, packedLookup, packedProduct, packedVectorProduct, vectorColumns, vectorShares } from './packed-matmul.wgsl.ts';
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
    const { subgroups } = abilitiesOf(backend);
    const program = packedVectorProduct({ decoder, aligned, rows, subgroups, ...vectorShares(decoder, shape.in) });
    return [dispatch(backend, program, { inputs, outputs, uniforms, groups: fold(shape.out, vectorColumns) }).y];
  }
  const tiles = tilesFor(rows, columns);
  const groups = [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles))] as const;
  return [dispatch(backend, packedProduct({ decoder, aligned, transposed, tiles }), { inputs, outputs, uniforms, groups }).y];
});

export const packedRowsKernel: Kernel = kernelOf(packedRowsOp, ({ ids, ...parts }, shape, backend) => {
  const count = sizeOf(ids) * shape.in;
  const variant = { decoder: decoderOf(shape), aligned: shape.in % runLength === 0 };
  const { y } = dispatch(backend, packedLookup(variant), {
    inputs: { ids, ...ordered(variant.decoder, parts as Record<string, TensorInfo>) },
    outputs: { y: { shape: [sizeOf(ids), shape.in] } },
    uniforms: { count, width: shape.in },
    groups: fold(count, lanes * lookupEach(variant)),
  });
  return [y];
});

/** The parts in the order that a decoder binds them. */
export const ordered = (decoder: Decoder, parts: Readonly<Record<string, TensorInfo>>): Record<string, TensorInfo> =>
  Object.fromEntries(Object.keys(decoder.inputs).map((name) => [name, parts[name]!]));
