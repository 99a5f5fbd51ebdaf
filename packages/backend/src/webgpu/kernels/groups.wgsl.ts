import { lanes, program, type Program } from '../program.ts';
import { fieldAt } from './unpack-fields.wgsl.ts';

type Sizes = 'count' | 'bits' | 'n';

/** A thread an entry of the dense matrix: what the slot that names its place holds, or 0. */
export const expandGroups: Program<'words' | 'values', 'dense', Sizes> = program({
  key: 'expand-groups',
  inputs: { words: 'u32', values: 'f32' },
  outputs: { dense: 'f32' },
  uniforms: { count: 'u32', bits: 'u32', n: 'u32' },
  workgroup: lanes,
  declarations: fieldAt,
  main: `
  if (index >= u.count) { return; }
  let first = (index >> u.bits) * u.n;
  let place = index & ((1u << u.bits) - 1u);
  var value = 0.0;
  for (var slot = first; slot < first + u.n; slot++) {
    if (fieldAt(slot) == place) { value = values[slot]; }
  }
  dense[index] = value;`,
});

/** A thread a stored value. */
export const pickGroups: Program<'words' | 'dense', 'values', Sizes> = program({
  key: 'pick-groups',
  inputs: { words: 'u32', dense: 'f32' },
  outputs: { values: 'f32' },
  uniforms: { count: 'u32', bits: 'u32', n: 'u32' },
  workgroup: lanes,
  declarations: fieldAt,
  main: `
  if (index >= u.count) { return; }
  values[index] = dense[((index / u.n) << u.bits) + fieldAt(index)];`,
});
