import { lanes, program, type Program } from '../program.ts';

const sides = {
  outputs: { next: 'u32' },
  uniforms: { count: 'u32', keep: 'f32', scale: 'f32' },
  workgroup: lanes,
} as const;

/** One thread an entry. A refused step moves bits, not numbers. */
const moved = (update: string): string => `
  if (index >= u.count) { return; }
  if (ok[0] != 0.0) {
    next[index] = bitcast<u32>(bitcast<f32>(old[index]) * u.keep + ${update} * u.scale);
  } else {
    next[index] = old[index];
  }`;

export const committed: Program<'old' | 'update' | 'ok', 'next', 'count' | 'keep' | 'scale'> = program({
  key: 'commit-update',
  inputs: { old: 'u32', update: 'f32', ok: 'f32' },
  ...sides,
  main: moved('update[index]'),
});

/** The same where `next` holds the update. */
export const committedOver: Program<'old' | 'ok', 'next', 'count' | 'keep' | 'scale'> = program({
  key: 'commit-update-over',
  inputs: { old: 'u32', ok: 'f32' },
  ...sides,
  main: moved('bitcast<f32>(next[index])'),
});
