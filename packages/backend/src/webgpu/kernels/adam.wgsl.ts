import { lanes, program, type Program } from '../program.ts';

type Scalars = 'correction1' | 'correction2' | 'ok';
type Results = 'direction' | 'nextMomentum' | 'nextVariance';
type Uniform = 'count' | 'beta1' | 'beta2' | 'rest1' | 'rest2' | 'eps';

/** The corrections are read on the device, since they count applied updates. */
const scalars = { correction1: 'f32', correction2: 'f32', ok: 'f32' } as const;
const sides = {
  outputs: { direction: 'f32', nextMomentum: 'f32', nextVariance: 'f32' },
  uniforms: { count: 'u32', beta1: 'f32', beta2: 'f32', rest1: 'f32', rest2: 'f32', eps: 'f32' },
  workgroup: lanes,
} as const;

/** One thread an entry: `m` and `v` from the tensors that hold what was there before, and the direction. */
const moments = (gradient: string, momentum: string, variance: string): string => `
  let g = ${gradient}[index];
  let m = ${momentum}[index] * u.beta1 + g * u.rest1;
  let v = ${variance}[index] * u.beta2 + g * g * u.rest2;
  direction[index] = (m / correction1[0]) / (sqrt(v / correction2[0]) + u.eps);`;

export const adamMoments: Program<'gradient' | 'momentum' | 'variance' | Scalars, Results, Uniform> = program({
  key: 'adam',
  inputs: { gradient: 'f32', momentum: 'f32', variance: 'f32', ...scalars },
  ...sides,
  main: `
  if (index >= u.count) { return; }${moments('gradient', 'momentum', 'variance')}
  if (ok[0] != 0.0) {
    nextMomentum[index] = m;
    nextVariance[index] = v;
  } else {
    nextMomentum[index] = momentum[index];
    nextVariance[index] = variance[index];
  }`,
});

/** The same where the results hold gradient and moments before. */
export const adamMomentsOver: Program<Scalars, Results, Uniform> = program({
  key: 'adam-over',
  inputs: scalars,
  ...sides,
  main: `
  if (index >= u.count || ok[0] == 0.0) { return; }${moments('direction', 'nextMomentum', 'nextVariance')}
  nextMomentum[index] = m;
  nextVariance[index] = v;`,
});
