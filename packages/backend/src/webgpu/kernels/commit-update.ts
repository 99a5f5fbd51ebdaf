import { commitUpdateOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { committed } from './commit-update.wgsl.ts';

export const commitUpdateKernel: Kernel = kernelOf(commitUpdateOp, ({ old, update, ok }, { keep, scale }, backend) => {
  const count = sizeOf(old);
  const outputs = { next: { shape: old.shape } };
  return [
    dispatch(backend, committed, { inputs: { old, update, ok }, outputs, uniforms: { count, keep, scale }, groups: fold(count, lanes) })
      .next,
  ];
});
