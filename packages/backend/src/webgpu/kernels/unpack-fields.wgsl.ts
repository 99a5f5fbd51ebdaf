import { lanes, program, type Program } from '../program.ts';

/** fieldAt(i: u32) -> u32: a field of `u.bits` out of `words`, lowest first; one may begin in a word and end in the next. */
export const fieldAt = `
fn fieldAt(i: u32) -> u32 {
  // The place of the first bit in two steps: count times bits may not fit in 32 bits.
  let word = (i / 32u) * u.bits + ((i % 32u) * u.bits) / 32u;
  let shift = ((i % 32u) * u.bits) % 32u;
  var field = words[word] >> shift;
  if (shift + u.bits > 32u) { field = field | (words[word + 1u] << (32u - shift)); }
  return field & ((1u << u.bits) - 1u);
}
`;

export const unpackFields: Program<'words', 'fields', 'count' | 'bits'> = program({
  key: 'unpack-fields',
  inputs: { words: 'u32' },
  outputs: { fields: 'f32' },
  uniforms: { count: 'u32', bits: 'u32' },
  workgroup: lanes,
  declarations: fieldAt,
  main: `
  if (index >= u.count) { return; }
  fields[index] = f32(fieldAt(index));`,
});
