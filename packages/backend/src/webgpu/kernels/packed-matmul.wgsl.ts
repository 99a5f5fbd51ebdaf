import { lanes, program, workgroupSum, type Element, type Program } from '../program.ts';
import { floatDecoding, prologueOf, runLength, type Decoder } from './packed-decode.wgsl.ts';
import { alongTerms, side, tileDeclarations, tiledProduct, tilesKey, type Tiles } from './tiles.wgsl.ts';

export interface PackedVariant {
  readonly decoder: Decoder;
  /** Whether rows begin on a run: else entries are decoded one by one. */
  readonly aligned: boolean;
}

export type PackedUniform = 'rows' | 'columns' | 'terms';

const keyOf = ({ decoder, aligned }: PackedVariant): string => `${decoder.key}-${aligned ? 'aligned' : 'ragged'}`;

export interface TiledVariant extends PackedVariant {
  readonly transposed: boolean;
  readonly tiles: Tiles;
}

export const tiledKey = (variant: TiledVariant): string => `${variant.transposed ? 'T' : 'N'}-${keyOf(variant)}-${tilesKey(variant.tiles)}`;

/**
 * Statements that stage rows of x and entries of W, which is decoded on its way to shared memory, for `tiledProduct`.
 * @param rows WGSL: where the rows of x end
 */
export function packedStage({ aligned, transposed }: TiledVariant, rows: string): string {
  // Runs lie along a row of W: along the terms of x·Wᵀ, along the columns of x·W.
  const along = transposed ? 'COLUMNS' : 'DEPTH';
  const across = transposed ? 'DEPTH' : 'COLUMNS';
  const [row, entry] = transposed ? ['k0 + line', 'column0 + first'] : ['column0 + line', 'k0 + first'];
  const [lines, width] = transposed ? ['u.terms', 'u.columns'] : ['u.columns', 'u.terms'];
  const put = (i: number | 'i', value: string): string => {
    const at = i === 'i' ? 'first + i' : `first + ${i}u`;
    return transposed ? `putB(line, ${at}, ${value});` : `putB(${at}, line, ${value});`;
  };
  const each = Array.from({ length: runLength }, (_, i) => put(i, `${i < 4 ? 'run.first' : 'run.second'}[${i % 4}]`)).join('\n      ');
  const ofX = alongTerms('ROWS');
  return `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofX.line};
      let k = k0 + ${ofX.term};
      var value = 0.0;
      if (row < ${rows} && k < u.terms) { value = x[row * u.terms + k]; }
      putA(k - k0, row - row0, value);
    }
    for (var at = lane; at < ${across} * (${along} / ${runLength}u); at += LANES) {
      let line = at / (${along} / ${runLength}u);
      let first = (at % (${along} / ${runLength}u)) * ${runLength}u;
      if (${row} >= ${lines} || ${entry} >= ${width}) {
        for (var i = 0u; i < ${runLength}u; i++) { ${put('i', '0.0')} }
        continue;
      }
      let e = (${row}) * ${width} + ${entry};
      ${
        aligned
          ? `let run = lineOf(e);
      ${each}`
          : `for (var i = 0u; i < ${runLength}u; i++) {
        var weight = 0.0;
        if (${entry} + i < ${width}) { weight = entryOf(e + i); }
        ${put('i', 'weight')}
      }`
      }
    }`;
}

/**
 * x·Wᵀ, or x·W when transposed, by the tiles of the dense product; W is decoded while it is staged and never exists in
 * float anywhere else.
 */
export function packedProduct(variant: TiledVariant): Program<string, 'y', PackedUniform> {
  const { decoder, tiles } = variant;
  return program({
    key: `packed-${tiledKey(variant)}`,
    inputs: { x: 'f32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32' },
    workgroup: [side, side],
    declarations: () => floatDecoding(decoder) + tileDeclarations(tiles),
    main: () => `${prologueOf(decoder)}
${tiledProduct({ tiles, stage: packedStage(variant, 'u.rows'), rows: 'u.rows', columns: 'u.columns', terms: 'u.terms', target: 'row * u.columns + column' })}`,
  });
}

/** Columns that each thread of a one-row product sums: x is read once for all of them. */
export const vectorColumns = 4;

export interface VectorVariant extends PackedVariant {
  /** Of x, at most 4. */
  readonly rows: number;
  /** Runs that a thread decodes at a time with the scales of the first. */
  readonly each: 1 | 2 | 4;
  /** Threads of a workgroup. */
  readonly threads: number;
  readonly subgroups: boolean;
}

/** How a product of so many terms is shared out: no fewer runs than a thread takes, no more threads than have something to do. */
export function vectorShares({ alike }: Decoder, terms: number): Pick<VectorVariant, 'each' | 'threads'> {
  const each = terms % (alike * runLength) === 0 ? alike : 1;
  return { each, threads: terms / (each * runLength) >= 128 ? 128 : 64 };
}

const columnsOf = Array.from({ length: vectorColumns }, (_, c) => c);

/** x·Wᵀ for a few rows of x, in generation: the threads of a workgroup share out the runs of four rows of W. Each byte of W is read once. */
export function packedVectorProduct(variant: VectorVariant): Program<string, 'y', PackedUniform> {
  const { decoder, aligned, rows, each, threads, subgroups } = variant;
  const sum = workgroupSum('sumOf', 'vec4<f32>', { subgroups });
  const rowsOf = Array.from({ length: rows }, (_, row) => row);
  return program({
    key: `packed-vector-${keyOf(variant)}-${rows}-${each}-${threads}${subgroups ? '-subgroups' : ''}`,
    inputs: { x: (aligned ? 'vec4<f32>' : 'f32') as Element, ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32' },
    workgroup: threads,
    subgroups,
    declarations: () => floatDecoding(decoder) + sum.code,
    main: () => `${prologueOf(decoder)}
  let column0 = groupIndex * ${vectorColumns}u;
${columnsOf.map((c) => `  let start${c} = min(column0 + ${c}u, u.columns - 1u) * u.terms;`).join('\n')}
${rowsOf.map((row) => `  var sum${row} = vec4<f32>(0.0);`).join('\n')}
${aligned ? runsOf(variant, rowsOf) : entriesOf(rowsOf)}
${rowsOf
  .map(
    (row) => `  {
    let total = ${sum.of(`sum${row}`)};
    if (lane < ${vectorColumns}u && column0 + lane < u.columns) { y[${row}u * u.columns + column0 + lane] = total[lane]; }
  }`,
  )
  .join('\n')}`,
  });
}

/**
 * Thread by thread the runs of a row: `each` of neighboring words, then those after the stretch that their second fours fill.
 */
function runsOf({ decoder: { places }, each }: VectorVariant, rows: readonly number[]): string {
  const { stride, woven, twoScales } = places;
  const step = stride === 4 ? runLength : 4;
  const units = (2 * stride) / (runLength * each);
  const first = units < 1 ? `unit * ${runLength * each}u` : `(unit / ${units}u) * ${2 * stride}u + (unit % ${units}u) * ${step * each}u`;
  const [even, odd] = woven ? (['vec4<f32>(a.xz, b.xz)', 'vec4<f32>(a.yw, b.yw)'] as const) : (['a', 'b'] as const);
  return `  for (var unit = lane; unit < u.terms / ${runLength * each}u; unit += LANES) {
    let k = ${first};
${columnsOf
  .map(
    (c) => `    let scale${c} = scaleOf(start${c} + k);
    let other${c} = ${twoScales ? `scaleOf(start${c} + k + ${stride}u)` : `scale${c}`};`,
  )
  .join('\n')}
    for (var i = 0u; i < ${each}u; i++) {
      let at = k + i * ${step}u;
${rows
  .map(
    (row) => `      var x${row}: Run;
      {
        let a = x[(${row}u * u.terms + at) >> 2u];
        let b = x[(${row}u * u.terms + at + ${stride}u) >> 2u];
        x${row} = Run(${even}, ${odd});
      }`,
  )
  .join('\n')}
${columnsOf
  .map(
    (c) => `      {
        let run = runOf(start${c} + at);
        let first = run.first * scale${c}.x + scale${c}.y;
        let second = run.second * other${c}.x + other${c}.y;
${rows.map((row) => `        sum${row}[${c}] += dot(first, x${row}.first) + dot(second, x${row}.second);`).join('\n')}
      }`,
  )
  .join('\n')}
    }
  }`;
}

/** The same for rows that begin anywhere. */
const entriesOf = (rows: readonly number[]): string => `  for (var k = lane; k < u.terms; k += LANES) {
    let entries = vec4<f32>(${columnsOf.map((c) => `entryOf(start${c} + k)`).join(', ')});
${rows.map((row) => `    sum${row} += entries * x[${row}u * u.terms + k];`).join('\n')}
  }`;

/** Rows by id: a thread a run, or an entry where rows begin anywhere. */
export function packedLookup(variant: PackedVariant): Program<string, 'y', 'count' | 'width'> {
  const { decoder, aligned } = variant;
  return program({
    key: `packed-rows-${keyOf(variant)}`,
    inputs: { ids: 'i32', ...decoder.inputs },
    outputs: { y: aligned ? 'vec4<f32>' : 'f32' },
    uniforms: { count: 'u32', width: 'u32' },
    workgroup: lanes,
    declarations: floatDecoding(decoder),
    main: `${prologueOf(decoder)}
  let at = index * ${lookupEach(variant)}u;
  if (at >= u.count) { return; }
  let e = u32(ids[at / u.width]) * u.width + at % u.width;
  ${
    aligned
      ? `let line = lineOf(e);
  y[2u * index] = line.first;
  y[2u * index + 1u] = line.second;`
      : 'y[index] = entryOf(e);'
  }`,
  });
}

/** Entries of a thread. */
export const lookupEach = ({ aligned }: PackedVariant): number => (aligned ? runLength : 1);
