import { adamOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { adamMoments } from './adam.wgsl.ts';

export const adamKernel: Kernel = kernelOf(adamOp, ({ gradient, momentum, variance, correction1, correction2, ok }, options, backend) => {
  const { beta1, beta2, eps } = options;
  const count = sizeOf(gradient);
  const { shape } = gradient;
  const { direction, nextMomentum, nextVariance } = dispatch(backend, adamMoments, {
    inputs: {
      gradient: gradient!,
      momentum: momentum!,
      variance: variance!,
      correction1: correction1!,
      correction2: correction2!,
      ok: ok!,
    },
    outputs: { direction: { shape }, nextMomentum: { shape }, nextVariance: { shape } },
    // 1 - beta in double, then rounded: 1 - f32(0.999) has lost three digits.
    uniforms: { count, beta1, beta2, rest1: 1 - beta1, rest2: 1 - beta2, eps },
    groups: fold(count, lanes),
  });
  return [direction, nextMomentum, nextVariance];
});
