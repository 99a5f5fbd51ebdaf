import { addProductOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { matMulProgram } from './mat-mul.wgsl.ts';
import { tileColumns, tileRows, tilesFor } from './tiles.wgsl.ts';

/** The tiled product, each of its entries added to one of the sum. */
export const addProductKernel: Kernel = kernelOf(addProductOp, ({ sum, a, b }, { overwrite }, backend) => {
  const [rows, columns] = sum.shape as [number, number];
  if (a.shape[0] === 0) {
    backend.incRef(sum.dataId);
    return [{ dataId: sum.dataId, shape: sum.shape, dtype: sum.dtype }];
  }
  const over = overwrite ? overwritten(backend, sum)?.[0] : undefined;
  const tiles = tilesFor(rows, columns);
  const program = matMulProgram({ transposeA: true, transposeB: false, tiles, onto: over === undefined ? 'sum' : 'y' });
  const { y } = dispatch(backend, program, {
    inputs: over === undefined ? { a, b, sum } : { a, b },
    outputs: { y: over ?? { shape: sum.shape } },
    uniforms: { rows, columns, terms: a.shape[0]!, inner: 1, aOuter: 0, aInner: 0, bOuter: 0, bInner: 0 },
    groups: [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles))],
  });
  return [y];
});
