import { lanes, program, type Program } from '../program.ts';

/** One thread an entry. A refused step moves bits, not numbers. */
export const committed: Program<'old' | 'update' | 'ok', 'next', 'count' | 'keep' | 'scale'> = program({
  key: 'commit-update',
  inputs: { old: 'u32', update: 'f32', ok: 'f32' },
  outputs: { next: 'u32' },
  uniforms: { count: 'u32', keep: 'f32', scale: 'f32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  if (ok[0] != 0.0) {
    next[index] = bitcast<u32>(bitcast<f32>(old[index]) * u.keep + update[index] * u.scale);
  } else {
    next[index] = old[index];
  }`,
});
