import { program, reduction, type Program } from '../program.ts';

/** One sum a workgroup: of squares, or of the sums of an earlier run. Always in one order. */
export const partSums = (squares: boolean): Program<'x', 'total', 'count'> =>
  program({
    key: squares ? 'sum-squares' : 'sum-parts',
    inputs: { x: 'f32' },
    outputs: { total: 'f32' },
    uniforms: { count: 'u32' },
    workgroup: 256,
    declarations: reduction('sumOf', 'a + b'),
    main: `
  var mine = 0.0;
  for (var i = index; i < u.count; i += groups.x * LANES) { mine += ${squares ? 'x[i] * x[i]' : 'x[i]'}; }
  let all = sumOf(mine, lane);
  if (lane == 0u) { total[groupIndex] = all; }`,
  });
