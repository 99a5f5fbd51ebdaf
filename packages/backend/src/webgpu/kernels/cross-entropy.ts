import { crossEntropyGradOp, crossEntropyOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { crossEntropyBackward, crossEntropyForward } from './cross-entropy.wgsl.ts';

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

export const crossEntropyGradKernel: Kernel = kernelOf(crossEntropyGradOp, ({ dloss, logits, targets, logSumExp }, _, backend) => {
  const [rows, vocabulary] = logits.shape as [number, number];
  const { dlogits } = dispatch(backend, crossEntropyBackward, {
    inputs: { dloss, logits, targets, logSumExp },
    outputs: { dlogits: { shape: logits.shape } },
    uniforms: { count: rows * vocabulary, vocabulary },
    groups: fold(rows * vocabulary, lanes),
  });
  return [dlogits];
});
