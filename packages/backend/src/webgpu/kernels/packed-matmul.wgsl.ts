import { program, reduction, type Program } from '../program.ts';
import { runLength, type Decoder } from './packed-decode.wgsl.ts';
import { side, tileDeclarations, tiledProduct, tilesKey, type Tiles } from './tiles.wgsl.ts';

export interface PackedVariant {
  readonly decoder: Decoder;
  /** Whether rows begin on a run: then eight neighbors share one scale. */
  readonly aligned: boolean;
}

export type PackedUniform = 'rows' | 'out' | 'width';

/** Statements that give `weight` for elements e + i of a run, i from 0 to 7, and call `use` where they lie inside the row. */
const eachOfRun = ({ aligned }: PackedVariant, from: string, inside: string, use: string): string => `
      let e = ${from};
      ${aligned ? 'let scale = scaleOf(e);' : ''}
      for (var i = 0u; i < ${runLength}u; i++) {
        var weight = 0.0;
        if (${inside}) {
          ${aligned ? '' : 'let scale = scaleOf(e + i);'}
          weight = codeOf(e + i) * scale.x + scale.y;
        }
        ${use}
      }`;

/**
 * x·Wᵀ, or x·W when transposed, by the tiles of the dense product; W is decoded while it is staged and never exists in
 * float anywhere else.
 */
export function packedProduct(
  variant: PackedVariant & { readonly transposed: boolean; readonly tiles: Tiles },
): Program<string, 'y', PackedUniform> {
  const { decoder, aligned, transposed, tiles } = variant;
  const terms = transposed ? 'u.out' : 'u.width';
  // Runs lie along a row of W: along the terms of x·Wᵀ, along the columns of x·W.
  const stageB = transposed
    ? `
    for (var run = lane; run < DEPTH * (COLUMNS / ${runLength}u); run += LANES) {
      let k = run / (COLUMNS / ${runLength}u);
      let column = (run % (COLUMNS / ${runLength}u)) * ${runLength}u;
      let inRow = k0 + k < u.out && column0 + column < u.width;
      if (!inRow) {
        for (var i = 0u; i < ${runLength}u; i++) { tileB[atB(k, column + i)] = 0.0; }
        continue;
      }
      ${eachOfRun(variant, '(k0 + k) * u.width + column0 + column', 'column0 + column + i < u.width', 'tileB[atB(k, column + i)] = weight;')}
    }`
    : `
    for (var run = lane; run < COLUMNS * (DEPTH / ${runLength}u); run += LANES) {
      let column = run / (DEPTH / ${runLength}u);
      let k = (run % (DEPTH / ${runLength}u)) * ${runLength}u;
      let inRow = column0 + column < u.out && k0 + k < u.width;
      if (!inRow) {
        for (var i = 0u; i < ${runLength}u; i++) { tileB[atB(k + i, column)] = 0.0; }
        continue;
      }
      ${eachOfRun(variant, '(column0 + column) * u.width + k0 + k', 'k0 + k + i < u.width', 'tileB[atB(k + i, column)] = weight;')}
    }`;
  const stage = `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + i / DEPTH;
      let k = k0 + i % DEPTH;
      var value = 0.0;
      if (row < u.rows && k < ${terms}) { value = x[row * ${terms} + k]; }
      tileA[atA(k - k0, row - row0)] = value;
    }
${stageB}`;
  const columns = transposed ? 'u.width' : 'u.out';
  return program({
    key: `packed-${transposed ? 'T' : 'N'}-${decoder.key}-${aligned ? 'aligned' : 'ragged'}-${tilesKey(tiles)}`,
    inputs: { x: 'f32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', out: 'u32', width: 'u32' },
    workgroup: [side, side],
    declarations: decoder.code + tileDeclarations(tiles),
    main: tiledProduct({ tiles, stage, rows: 'u.rows', columns, terms, target: `row * ${columns} + column` }),
  });
}

/** Rows of x that the row-by-row variant takes, one lane of a vector each. */
export const mostVectorRows = 4;

/** x·Wᵀ for a few rows of x: a workgroup a row of W, its threads share out the runs. Each byte of W is read once. */
export function packedVectorProduct(variant: PackedVariant & { readonly rows: number }): Program<string, 'y', PackedUniform> {
  const { decoder, aligned, rows } = variant;
  const lanesOf = (text: (row: number) => string): string =>
    Array.from({ length: mostVectorRows }, (_, row) => (row < rows ? text(row) : '0.0')).join(', ');
  return program({
    key: `packed-vector-${decoder.key}-${aligned ? 'aligned' : 'ragged'}-${rows}`,
    inputs: { x: 'f32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', out: 'u32', width: 'u32' },
    workgroup: 64,
    declarations: decoder.code + reduction('sumOf', 'a + b', 'vec4<f32>'),
    main: `
  if (groupIndex >= u.out) { return; }
  var sums = vec4<f32>(0.0);
  for (var k = lane * ${runLength}u; k < u.width; k += LANES * ${runLength}u) {
    ${eachOfRun(
      variant,
      'groupIndex * u.width + k',
      'k + i < u.width',
      `if (k + i < u.width) { sums += weight * vec4<f32>(${lanesOf((row) => `x[${row}u * u.width + k + i]`)}); }`,
    )}
  }
  let total = sumOf(sums, lane);
  if (lane < u.rows) { y[lane * u.out + groupIndex] = total[lane]; }`,
  });
}

/** Rows by id: a thread an element. */
export function packedLookup(decoder: Decoder): Program<string, 'y', 'count' | 'width'> {
  return program({
    key: `packed-rows-${decoder.key}`,
    inputs: { ids: 'i32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { count: 'u32', width: 'u32' },
    workgroup: 64,
    declarations: decoder.code,
    main: `
  if (index >= u.count) { return; }
  let e = u32(ids[index / u.width]) * u.width + index % u.width;
  let scale = scaleOf(e);
  y[index] = codeOf(e) * scale.x + scale.y;`,
  });
}
