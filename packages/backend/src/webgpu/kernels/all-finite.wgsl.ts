import { program, reduction, type Program } from '../program.ts';

/** One flag a workgroup, which walks over `count` entries in steps of all workgroups' threads. */
export type FiniteStage = Program<'x', 'result', 'count'>;

const stage = (key: string, bad: string): FiniteStage =>
  program({
    key,
    inputs: { x: 'u32' },
    outputs: { result: 'f32' },
    uniforms: { count: 'u32' },
    workgroup: 256,
    declarations: reduction('either', 'a | b', 'u32'),
    main: `
  var bad = 0u;
  for (var i = index; i < u.count; i += groups.x * LANES) {
    if (${bad}) { bad = 1u; }
  }
  let found = either(bad, lane);
  if (lane == 0u) { result[groupIndex] = f32(1u - found); }`,
  });

/** One flag per workgroup. An exponent of all ones is a NaN or an infinity; comparing floats would let a compiler assume there are none. */
export const finiteBits: FiniteStage = stage('all-finite', '(x[i] & 0x7f800000u) == 0x7f800000u');

/** One flag of flags: 0.0 has no bits. */
export const finiteFlags: FiniteStage = stage('all-finite-flags', 'x[i] == 0u');
