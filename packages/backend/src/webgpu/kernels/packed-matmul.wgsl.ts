import { lanes, program, type Program } from '../program.ts';
import { addLanes, dotColumns, dotLanes, rowVector } from './mat-vec.wgsl.ts';
import { runLength, type Decoder } from './packed-decode.wgsl.ts';
import { alongTerms, side, tileDeclarations, tiledProduct, tilesKey, type Tiles } from './tiles.wgsl.ts';

export interface PackedVariant {
  readonly decoder: Decoder;
  /** Whether rows begin on a run: then eight neighbors share one scale. */
  readonly aligned: boolean;
}

export type PackedUniform = 'rows' | 'columns' | 'terms';

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
  // Runs lie along a row of W: along the terms of x·Wᵀ, along the columns of x·W.
  const along = transposed ? 'COLUMNS' : 'DEPTH';
  const across = transposed ? 'DEPTH' : 'COLUMNS';
  const [row, entry] = transposed ? ['k0 + line', 'column0 + first'] : ['column0 + line', 'k0 + first'];
  const [lines, width] = transposed ? ['u.terms', 'u.columns'] : ['u.columns', 'u.terms'];
  const put = (value: string): string => (transposed ? `putB(line, first + i, ${value});` : `putB(first + i, line, ${value});`);
  const ofX = alongTerms('ROWS');
  const stage = `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofX.line};
      let k = k0 + ${ofX.term};
      var value = 0.0;
      if (row < u.rows && k < u.terms) { value = x[row * u.terms + k]; }
      putA(k - k0, row - row0, value);
    }
    for (var run = lane; run < ${across} * (${along} / ${runLength}u); run += LANES) {
      let line = run / (${along} / ${runLength}u);
      let first = (run % (${along} / ${runLength}u)) * ${runLength}u;
      if (${row} >= ${lines} || ${entry} >= ${width}) {
        for (var i = 0u; i < ${runLength}u; i++) { ${put('0.0')} }
        continue;
      }
      ${eachOfRun(variant, `(${row}) * ${width} + ${entry}`, `${entry} + i < ${width}`, put('weight'))}
    }`;
  return program({
    key: `packed-${transposed ? 'T' : 'N'}-${decoder.key}-${aligned ? 'aligned' : 'ragged'}-${tilesKey(tiles)}`,
    inputs: { x: 'f32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32' },
    workgroup: [side, side],
    declarations: decoder.code + tileDeclarations(tiles),
    main: tiledProduct({ tiles, stage, rows: 'u.rows', columns: 'u.columns', terms: 'u.terms', target: 'row * u.columns + column' }),
  });
}

/** x·Wᵀ for a few rows of x, in generation: a few threads a row of W share out its runs. Each byte of W is read once. */
export function packedVectorProduct(variant: PackedVariant & { readonly rows: number }): Program<string, 'y', PackedUniform> {
  const { decoder, aligned, rows } = variant;
  const vector = rowVector(rows);
  const entries = vector.of((row) => `x[${row}u * u.terms + k + i]`);
  const use = `if (k + i < u.terms) { sums = fma(${vector.type}(weight), ${entries}, sums); }`;
  return program({
    key: `packed-vector-${decoder.key}-${aligned ? 'aligned' : 'ragged'}-${rows}`,
    inputs: { x: 'f32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32' },
    workgroup: [dotLanes, dotColumns],
    declarations: `${decoder.code}
var<workgroup> partial: array<${vector.type}, LANES>;`,
    main: `
  let column = (group.y * groups.x + group.x) * ${dotColumns}u + local.y;
  var sums = ${vector.type}(0.0);
  if (column < u.columns) {
    for (var k = local.x * ${runLength}u; k < u.terms; k += ${dotLanes * runLength}u) {
      ${eachOfRun(variant, 'column * u.terms + k', 'k + i < u.terms', use)}
    }
  }
${addLanes(vector, 'local.x * u.columns + column')}`,
  });
}

/** Rows by id: a thread an element. */
export function packedLookup(decoder: Decoder): Program<string, 'y', 'count' | 'width'> {
  return program({
    key: `packed-rows-${decoder.key}`,
    inputs: { ids: 'i32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { count: 'u32', width: 'u32' },
    workgroup: lanes,
    declarations: decoder.code,
    main: `
  if (index >= u.count) { return; }
  let e = u32(ids[index / u.width]) * u.width + index % u.width;
  let scale = scaleOf(e);
  y[index] = codeOf(e) * scale.x + scale.y;`,
  });
}
