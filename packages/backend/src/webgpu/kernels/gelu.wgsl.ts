import type { GeluForm } from '@niwaki/tensor';
import { lanes, program, type Program } from '../program.ts';
import { sigmoid } from './sigmoid.wgsl.ts';

/** `share(x)`, the part of x that is let through, and its derivative `slope(x, share)`. */
const forms: Readonly<Record<GeluForm, string>> = {
  // Abramowitz & Stegun 7.1.26, good to 1e-7; both halves from the tail, so that neither is a difference of large numbers.
  erf: `
fn share(x: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * abs(x));
  let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  let tail = 0.5 * series * exp(-0.5 * x * x);
  return select(1.0 - tail, tail, x < 0.0);
}
fn slope(x: f32, s: f32) -> f32 { return 0.3989422804014327 * exp(-0.5 * x * x); }`,
  tanh: `${sigmoid}
const outer = 1.5957691216057308;
const cubic = 0.07135481627159976;
fn share(x: f32) -> f32 { return sigmoid(x * (outer + cubic * x * x)); }
fn slope(x: f32, s: f32) -> f32 { return s * (1.0 - s) * (outer + 3.0 * cubic * x * x); }`,
};

export const geluForward = (form: GeluForm): Program<'x', 'y', 'count'> =>
  program({
    key: `gelu-${form}`,
    inputs: { x: 'f32' },
    outputs: { y: 'f32' },
    uniforms: { count: 'u32' },
    workgroup: lanes,
    declarations: forms[form],
    main: `
  if (index >= u.count) { return; }
  y[index] = x[index] * share(x[index]);`,
  });

export const geluBackward = (form: GeluForm): Program<'dy' | 'x', 'dx', 'count'> =>
  program({
    key: `gelu-${form}-grad`,
    inputs: { dy: 'f32', x: 'f32' },
    outputs: { dx: 'f32' },
    uniforms: { count: 'u32' },
    workgroup: lanes,
    declarations: forms[form],
    main: `
  if (index >= u.count) { return; }
  let s = share(x[index]);
  dx[index] = dy[index] * (s + x[index] * slope(x[index], s));`,
  });
