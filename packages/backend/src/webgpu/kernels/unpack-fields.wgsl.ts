import { lanes, program, type Program } from '../program.ts';

/** Fields of a few bits, lowest first; one may begin in a word and end in the next. */
export const unpackFields: Program<'words', 'fields', 'count' | 'bits'> = program({
  key: 'unpack-fields',
  inputs: { words: 'u32' },
  outputs: { fields: 'f32' },
  uniforms: { count: 'u32', bits: 'u32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  // The place of the first bit in two steps: count times bits may not fit in 32 bits.
  let word = (index / 32u) * u.bits + ((index % 32u) * u.bits) / 32u;
  let shift = ((index % 32u) * u.bits) % 32u;
  var field = words[word] >> shift;
  if (shift + u.bits > 32u) { field = field | (words[word + 1u] << (32u - shift)); }
  fields[index] = f32(field & ((1u << u.bits) - 1u));`,
});
