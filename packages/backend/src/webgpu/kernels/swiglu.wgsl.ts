import { lanes, program, type Program } from '../program.ts';
import { sigmoid } from './sigmoid.wgsl.ts';

export const swigluForward: Program<'gate' | 'up', 'y', 'count'> = program({
  key: 'swiglu',
  inputs: { gate: 'f32', up: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { count: 'u32' },
  workgroup: lanes,
  declarations: sigmoid,
  main: `
  if (index >= u.count) { return; }
  y[index] = gate[index] * sigmoid(gate[index]) * up[index];`,
});

/** d silu/d gate = s + silu · (1 - s) */
export const swigluBackward: Program<'dy' | 'gate' | 'up', 'dgate' | 'dup', 'count'> = program({
  key: 'swiglu-grad',
  inputs: { dy: 'f32', gate: 'f32', up: 'f32' },
  outputs: { dgate: 'f32', dup: 'f32' },
  uniforms: { count: 'u32' },
  workgroup: lanes,
  declarations: sigmoid,
  main: `
  if (index >= u.count) { return; }
  let s = sigmoid(gate[index]);
  let silu = gate[index] * s;
  dgate[index] = dy[index] * up[index] * (s + silu * (1.0 - s));
  dup[index] = dy[index] * silu;`,
});
