import { lanes, program, type Program } from '../program.ts';

/** In entries: `run` of rows and `stride` of the target for each of the batch, `begin` of the first row to replace. */
type Uniforms = 'count' | 'run' | 'stride' | 'begin';

const sides = {
  outputs: { y: 'f32' },
  uniforms: { count: 'u32', run: 'u32', stride: 'u32', begin: 'u32' },
  workgroup: lanes,
} as const;

/** One thread an entry of the target. */
export const putRows: Program<'old' | 'rows', 'y', Uniforms> = program({
  key: 'put-rows',
  inputs: { old: 'f32', rows: 'f32' },
  ...sides,
  main: `
  if (index >= u.count) { return; }
  let place = index % u.stride;
  if (place >= u.begin && place < u.begin + u.run) {
    y[index] = rows[(index / u.stride) * u.run + place - u.begin];
  } else {
    y[index] = old[index];
  }`,
});

/** One thread an entry of the rows, where `y` holds the target. */
export const putRowsOver: Program<'rows', 'y', Uniforms> = program({
  key: 'put-rows-over',
  inputs: { rows: 'f32' },
  ...sides,
  main: `
  if (index < u.count) { y[(index / u.run) * u.stride + u.begin + index % u.run] = rows[index]; }`,
});
