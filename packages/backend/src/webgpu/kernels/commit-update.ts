import { commitUpdateOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { committed, committedOver } from './commit-update.wgsl.ts';

export const commitUpdateKernel: Kernel = kernelOf(commitUpdateOp, ({ old, update, ok }, { keep, scale, overwrite }, backend) => {
  const count = sizeOf(old);
  const sides = { uniforms: { count, keep, scale }, groups: fold(count, lanes) };
  const over = overwrite ? overwritten(backend, update)?.[0] : undefined;
  if (over !== undefined) return [dispatch(backend, committedOver, { inputs: { old, ok }, outputs: { next: over }, ...sides }).next];
  return [dispatch(backend, committed, { inputs: { old, update, ok }, outputs: { next: { shape: old.shape } }, ...sides }).next];
});
