import { lanes, program, type Program } from '../program.ts';

/** One thread a pair (i, i + d/2) of a row's query heads, then of its key heads. `sign` is -1 for the inverse rotation. */
export const rotate: Program<'q' | 'k' | 'cosines' | 'sines', 'turnedQ' | 'turnedK', 'pairs' | 'heads' | 'kvHeads' | 'half' | 'sign'> =
  program({
    key: 'rope',
    inputs: { q: 'f32', k: 'f32', cosines: 'f32', sines: 'f32' },
    outputs: { turnedQ: 'f32', turnedK: 'f32' },
    uniforms: { pairs: 'u32', heads: 'u32', kvHeads: 'u32', half: 'u32', sign: 'f32' },
    workgroup: lanes,
    main: `
  if (index >= u.pairs) { return; }
  let i = index % u.half;
  let both = u.heads + u.kvHeads;
  let row = index / u.half / both;
  let head = index / u.half % both;
  let c = cosines[row * u.half + i];
  let s = sines[row * u.half + i] * u.sign;
  if (head < u.heads) {
    let first = (row * u.heads + head) * 2u * u.half + i;
    let second = first + u.half;
    turnedQ[first] = q[first] * c - q[second] * s;
    turnedQ[second] = q[second] * c + q[first] * s;
  } else {
    let first = (row * u.kvHeads + head - u.heads) * 2u * u.half + i;
    let second = first + u.half;
    turnedK[first] = k[first] * c - k[second] * s;
    turnedK[second] = k[second] * c + k[first] * s;
  }`,
  });
