import { lanes, program, type Program } from '../program.ts';

/** Moves bits, not numbers: a refused step must not touch a NaN or a subnormal. */
export const chooseBits: Program<'ok' | 'next' | 'old', 'chosen', 'count'> = program({
  key: 'choose',
  inputs: { ok: 'f32', next: 'u32', old: 'u32' },
  outputs: { chosen: 'u32' },
  uniforms: { count: 'u32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  if (ok[0] != 0.0) { chosen[index] = next[index]; } else { chosen[index] = old[index]; }`,
});
