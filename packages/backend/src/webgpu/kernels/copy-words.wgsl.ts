import { lanes, program, type Program } from '../program.ts';

/** A run of words to another place. */
export const copyWords: Program<'words', 'y', 'begin' | 'to' | 'count'> = program({
  key: 'copy-words',
  inputs: { words: 'i32' },
  outputs: { y: 'i32' },
  uniforms: { begin: 'u32', to: 'u32', count: 'u32' },
  workgroup: lanes,
  main: `
  if (index < u.count) { y[u.to + index] = words[u.begin + index]; }`,
});
