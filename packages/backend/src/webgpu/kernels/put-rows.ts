import { putRowsOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { putRows, putRowsOver } from './put-rows.wgsl.ts';

export const putRowsKernel: Kernel = kernelOf(putRowsOp, ({ target, rows, at }, { lead, overwrite }, backend) => {
  const [batch, length] = target.shape as [number, number];
  const width = sizeOf(target) / (batch * length);
  const uniforms = { count: sizeOf(rows), run: rows.shape[1]! * width, stride: length * width, width, lead };
  const over = overwrite ? overwritten(backend, target)?.[0] : undefined;
  if (over !== undefined) {
    const groups = fold(uniforms.count, lanes);
    return [dispatch(backend, putRowsOver, { inputs: { rows, at }, outputs: { y: over }, uniforms, groups }).y];
  }
  const count = sizeOf(target);
  const sides = { uniforms: { ...uniforms, count }, groups: fold(count, lanes) };
  return [dispatch(backend, putRows, { inputs: { old: target, rows, at }, outputs: { y: { shape: target.shape } }, ...sides }).y];
});
