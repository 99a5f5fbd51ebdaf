import { program, reduction } from '../program.ts';
import type { Reduction } from './reduce-all.ts';

const stage = (key: string, term: string): Reduction =>
  program({
    key,
    inputs: { x: 'f32' },
    outputs: { result: 'f32' },
    uniforms: { count: 'u32' },
    workgroup: 256,
    declarations: reduction('sumOf', 'a + b'),
    main: `
  var mine = 0.0;
  for (var i = index; i < u.count; i += groups.x * LANES) { mine += ${term}; }
  let all = sumOf(mine, lane);
  if (lane == 0u) { result[groupIndex] = all; }`,
  });

export const sumOfSquares: Reduction = stage('sum-squares', 'x[i] * x[i]');

/** Of what `sumOfSquares` found. */
export const sumOfParts: Reduction = stage('sum-parts', 'x[i]');
