import { adamOp } from '@niwaki/tensor';
import { dispatch, overwritten } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { adamMoments, adamMomentsOver } from './adam.wgsl.ts';

export const adamKernel: Kernel = kernelOf(
  adamOp,
  ({ gradient, momentum, variance, correction1, correction2, ok }, { beta1, beta2, eps, overwrite }, backend) => {
    const count = sizeOf(gradient!);
    const scalars = { correction1: correction1!, correction2: correction2!, ok: ok! };
    // 1 - beta in double, then rounded: 1 - f32(0.999) has lost three digits.
    const sides = { uniforms: { count, beta1, beta2, rest1: 1 - beta1, rest2: 1 - beta2, eps }, groups: fold(count, lanes) };
    const over = overwrite ? overwritten(backend, gradient!, momentum!, variance!) : undefined;
    if (over !== undefined) {
      const [direction, nextMomentum, nextVariance] = over;
      dispatch(backend, adamMomentsOver, { inputs: scalars, outputs: { direction, nextMomentum, nextVariance }, ...sides });
      return over;
    }
    const { shape } = gradient!;
    const { direction, nextMomentum, nextVariance } = dispatch(backend, adamMoments, {
      inputs: { gradient: gradient!, momentum: momentum!, variance: variance!, ...scalars },
      outputs: { direction: { shape }, nextMomentum: { shape }, nextVariance: { shape } },
      ...sides,
    });
    return [direction, nextMomentum, nextVariance];
  },
);
