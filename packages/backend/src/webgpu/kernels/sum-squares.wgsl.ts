import { program, reduction, type Program } from '../program.ts';

const header = { workgroup: 256, declarations: reduction('sumOf', 'a + b') } as const;

/**
 * Σ x² over so many tensors: a workgroup walks over its share of each and adds it to what it found in the ones `before`.
 * Uniforms: the size of each tensor.
 */
export function sumOfSquares(tensors: number, { before }: { readonly before: boolean }): Program<string, 'found', string> {
  const names = Array.from({ length: tensors }, (_, i) => `x${i}`);
  const floats = Object.fromEntries([...(before ? ['before'] : []), ...names].map((name) => [name, 'f32' as const]));
  return program<string, 'found', string>({
    ...header,
    key: `sum-squares-${tensors}${before ? '-more' : ''}`,
    inputs: floats,
    outputs: { found: 'f32' },
    uniforms: Object.fromEntries(names.map((name) => [`of_${name}`, 'u32' as const])),
    main: `
  var mine = 0.0;
${names.map((name) => `  for (var i = index; i < u.of_${name}; i += groups.x * LANES) { mine += ${name}[i] * ${name}[i]; }`).join('\n')}
  let all = sumOf(mine, lane);
  if (lane == 0u) { found[groupIndex] = all${before ? ' + before[groupIndex]' : ''}; }`,
  });
}

/** Of what `sumOfSquares` found. */
export const sumOfParts: Program<'x', 'result', 'count'> = program({
  ...header,
  key: 'sum-parts',
  inputs: { x: 'f32' },
  outputs: { result: 'f32' },
  uniforms: { count: 'u32' },
  main: `
  var mine = 0.0;
  for (var i = lane; i < u.count; i += LANES) { mine += x[i]; }
  let all = sumOf(mine, lane);
  if (lane == 0u) { result[0] = all; }`,
});
