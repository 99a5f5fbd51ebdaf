import { chooseOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { chooseBits } from './choose.wgsl.ts';

export const chooseKernel: Kernel = kernelOf(chooseOp, ({ ok, next, old }, _, backend) => {
  const count = sizeOf(next);
  const outputs = { chosen: { shape: next.shape, dtype: next.dtype } };
  return [dispatch(backend, chooseBits, { inputs: { ok, next, old }, outputs, uniforms: { count }, groups: fold(count, lanes) }).chosen];
});
