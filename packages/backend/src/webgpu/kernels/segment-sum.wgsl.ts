import { lanes, program, type Program } from '../program.ts';

export const clear: Program<never, 'sums', 'count'> = program<never, 'sums', 'count'>({
  key: 'clear',
  inputs: {},
  outputs: { sums: 'f32' },
  uniforms: { count: 'u32' },
  workgroup: lanes,
  main: `
  if (index < u.count) { sums[index] = 0.0; }`,
});

/**
 * One workgroup a row of x. The first row of each segment sums all of that segment's rows, in their order; the others
 * do nothing. No atomics, hence one order and the same bits each time.
 */
export const segmentSum: Program<'x' | 'ids', 'sums', 'rows' | 'width' | 'segments'> = program({
  key: 'segment-sum',
  inputs: { x: 'f32', ids: 'i32' },
  outputs: { sums: 'f32' },
  uniforms: { rows: 'u32', width: 'u32', segments: 'u32' },
  workgroup: lanes,
  declarations: `var<workgroup> seen: atomic<u32>;`,
  main: `
  if (groupIndex >= u.rows) { return; }
  let id = ids[groupIndex];
  if (id < 0 || u32(id) >= u.segments) { return; }
  for (var row = lane; row < groupIndex; row += LANES) {
    if (ids[row] == id) { atomicStore(&seen, 1u); }
  }
  workgroupBarrier();
  if (atomicLoad(&seen) == 1u) { return; }
  for (var column = lane; column < u.width; column += LANES) {
    var sum = x[groupIndex * u.width + column];
    for (var row = groupIndex + 1u; row < u.rows; row++) {
      if (ids[row] == id) { sum += x[row * u.width + column]; }
    }
    sums[u32(id) * u.width + column] = sum;
  }`,
});
