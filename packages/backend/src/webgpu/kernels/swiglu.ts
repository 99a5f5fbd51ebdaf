import { swigluGradOp, swigluOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { swigluBackward, swigluForward } from './swiglu.wgsl.ts';

export const swigluKernel: Kernel = kernelOf(swigluOp, ({ gate, up }, _, backend) => {
  const count = sizeOf(gate);
  const run = { inputs: { gate, up }, outputs: { y: { shape: gate.shape } }, uniforms: { count }, groups: fold(count, lanes) };
  return [dispatch(backend, swigluForward, run).y];
});

export const swigluGradKernel: Kernel = kernelOf(swigluGradOp, ({ dy, gate, up }, _, backend) => {
  const count = sizeOf(gate);
  const outputs = { dgate: { shape: gate.shape }, dup: { shape: gate.shape } };
  const { dgate, dup } = dispatch(backend, swigluBackward, {
    inputs: { dy, gate, up },
    outputs,
    uniforms: { count },
    groups: fold(count, lanes),
  });
  return [dgate, dup];
});
