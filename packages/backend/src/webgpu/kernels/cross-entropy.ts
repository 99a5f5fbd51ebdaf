import { crossEntropyGradOp, crossEntropyOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { crossEntropyBackward, crossEntropyBackwardOver, crossEntropyForward } from './cross-entropy.wgsl.ts';

export const crossEntropyKernel: Kernel = kernelOf(crossEntropyOp, ({ logits, targets }, _, backend) => {
  const [rows, vocabulary] = logits.shape as [number, number];
  const { loss, logSumExp } = dispatch(backend, crossEntropyForward, {
    inputs: { logits, targets },
    outputs: { loss: { shape: [rows] }, logSumExp: { shape: [rows] } },
    uniforms: { rows, vocabulary },
    groups: fold(rows),
  });
  return [loss, logSumExp];
});

export const crossEntropyGradKernel: Kernel = kernelOf(crossEntropyGradOp, ({ logits, ...rest }, { overwrite }, backend) => {
  const [rows, vocabulary] = logits.shape as [number, number];
  const sides = { uniforms: { count: rows * vocabulary, vocabulary }, groups: fold(rows * vocabulary, lanes) };
  const over = overwrite ? overwritten(backend, logits)?.[0] : undefined;
  if (over !== undefined)
    return [dispatch(backend, crossEntropyBackwardOver, { inputs: rest, outputs: { dlogits: over }, ...sides }).dlogits];
  const outputs = { dlogits: { shape: logits.shape } };
  return [dispatch(backend, crossEntropyBackward, { inputs: { logits, ...rest }, outputs, ...sides }).dlogits];
});
