import { geluGradOp, geluOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { geluBackward, geluForward } from './gelu.wgsl.ts';

export const geluKernel: Kernel = kernelOf(geluOp, ({ x }, { form }, backend) => {
  const count = sizeOf(x);
  const run = { inputs: { x }, outputs: { y: { shape: x.shape } }, uniforms: { count }, groups: fold(count, lanes) };
  return [dispatch(backend, geluForward(form), run).y];
});

export const geluGradKernel: Kernel = kernelOf(geluGradOp, ({ dy, x }, { form }, backend) => {
  const count = sizeOf(x);
  const run = { inputs: { dy, x }, outputs: { dx: { shape: x.shape } }, uniforms: { count }, groups: fold(count, lanes) };
  return [dispatch(backend, geluBackward(form), run).dx];
});
