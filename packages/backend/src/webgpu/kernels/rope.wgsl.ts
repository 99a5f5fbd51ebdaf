import { lanes, program, type Program } from '../program.ts';

/** One thread a pair (i, i + d/2). `sign` is -1 for the inverse rotation. */
export const rotate: Program<'x' | 'cosines' | 'sines', 'y', 'pairs' | 'heads' | 'half' | 'sign'> = program({
  key: 'rope',
  inputs: { x: 'f32', cosines: 'f32', sines: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { pairs: 'u32', heads: 'u32', half: 'u32', sign: 'f32' },
  workgroup: lanes,
  main: `
  if (index >= u.pairs) { return; }
  let i = index % u.half;
  let head = index / u.half;
  let angle = (head / u.heads) * u.half + i;
  let c = cosines[angle];
  let s = sines[angle] * u.sign;
  let first = head * 2u * u.half + i;
  let second = first + u.half;
  y[first] = x[first] * c - x[second] * s;
  y[second] = x[second] * c + x[first] * s;`,
});
