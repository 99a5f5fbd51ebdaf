import { putRowsOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { putRows, putRowsOver } from './put-rows.wgsl.ts';

export const putRowsKernel: Kernel = kernelOf(putRowsOp, ({ target, rows }, { at, overwrite }, backend) => {
  const [batch, length] = target.shape as [number, number];
  const width = sizeOf(target) / (batch * length);
  const uniforms = { count: sizeOf(rows), run: rows.shape[1]! * width, stride: length * width, begin: at * width };
  const over = overwrite ? overwritten(backend, target)?.[0] : undefined;
  if (over !== undefined) {
    return [dispatch(backend, putRowsOver, { inputs: { rows }, outputs: { y: over }, uniforms, groups: fold(uniforms.count, lanes) }).y];
  }
  const count = sizeOf(target);
  const sides = { uniforms: { ...uniforms, count }, groups: fold(count, lanes) };
  return [dispatch(backend, putRows, { inputs: { old: target, rows }, outputs: { y: { shape: target.shape } }, ...sides }).y];
});
