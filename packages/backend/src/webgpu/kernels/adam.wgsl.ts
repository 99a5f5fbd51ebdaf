import { lanes, program, type Program } from '../program.ts';

/** One thread an entry. The corrections are read on the device, since they count applied updates. */
export const adamMoments: Program<
  'gradient' | 'momentum' | 'variance' | 'correction1' | 'correction2' | 'ok',
  'direction' | 'nextMomentum' | 'nextVariance',
  'count' | 'beta1' | 'beta2' | 'rest1' | 'rest2' | 'eps'
> = program({
  key: 'adam',
  inputs: { gradient: 'f32', momentum: 'f32', variance: 'f32', correction1: 'f32', correction2: 'f32', ok: 'f32' },
  outputs: { direction: 'f32', nextMomentum: 'f32', nextVariance: 'f32' },
  uniforms: { count: 'u32', beta1: 'f32', beta2: 'f32', rest1: 'f32', rest2: 'f32', eps: 'f32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  let g = gradient[index];
  let m = momentum[index] * u.beta1 + g * u.rest1;
  let v = variance[index] * u.beta2 + g * g * u.rest2;
  if (ok[0] != 0.0) {
    nextMomentum[index] = m;
    nextVariance[index] = v;
  } else {
    nextMomentum[index] = momentum[index];
    nextVariance[index] = variance[index];
  }
  direction[index] = (m / correction1[0]) / (sqrt(v / correction2[0]) + u.eps);`,
});
