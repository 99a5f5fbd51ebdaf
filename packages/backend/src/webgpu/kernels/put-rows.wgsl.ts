import { lanes, program, type Program } from '../program.ts';

/** In entries: `run` of rows and `stride` of the target for each of the batch, and `width` of a row; `lead` in rows. */
type Uniforms = 'count' | 'run' | 'stride' | 'width' | 'lead';

const sides = {
  outputs: { y: 'f32' },
  uniforms: { count: 'u32', run: 'u32', stride: 'u32', width: 'u32', lead: 'i32' },
  workgroup: lanes,
} as const;

/** The first entry to replace, or the end of the target where the rows do not fit. */
const begin = `
  let first = u.lead + at[0];
  let begin = select(u.stride, u32(max(first, 0)) * u.width, first >= 0 && first <= i32((u.stride - u.run) / u.width));`;

/** One thread an entry of the target. */
export const putRows: Program<'old' | 'rows' | 'at', 'y', Uniforms> = program({
  key: 'put-rows',
  inputs: { old: 'f32', rows: 'f32', at: 'i32' },
  ...sides,
  main: `${begin}
  if (index >= u.count) { return; }
  let place = index % u.stride;
  if (place >= begin && place < begin + u.run) {
    y[index] = rows[(index / u.stride) * u.run + place - begin];
  } else {
    y[index] = old[index];
  }`,
});

/** One thread an entry of the rows, where `y` holds the target. */
export const putRowsOver: Program<'rows' | 'at', 'y', Uniforms> = program({
  key: 'put-rows-over',
  inputs: { rows: 'f32', at: 'i32' },
  ...sides,
  main: `${begin}
  if (index < u.count && begin < u.stride) { y[(index / u.run) * u.stride + begin + index % u.run] = rows[index]; }`,
});
