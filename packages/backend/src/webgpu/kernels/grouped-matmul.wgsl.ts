import { DeviceError } from '@niwaki/tensor';
import { program, type Program, type Scalar } from '../program.ts';
import { floatDecoding, prologueOf, type Decoder } from './packed-decode.wgsl.ts';
import { packedStage, tiledKey, type TiledVariant } from './packed-matmul.wgsl.ts';
import { acrossTerms, alongTerms, side, tileDeclarations, tiledProduct, tileRows, tilesKey, type Tiles } from './tiles.wgsl.ts';

export type GroupedUniform = 'rows' | 'columns' | 'terms' | 'count';
const uniforms = { rows: 'u32', columns: 'u32', terms: 'u32', count: 'u32' } as const;

/**
 * Workgroups along y: how many rows each run has is known on the device alone. Tile t of run p has the number
 * floor(start(p) / height) + p + t, which no other tile has, and which is below this whatever the runs are. The rows before
 * the first run and after the last count as runs too.
 */
export const rowSlots = (rows: number, count: number, tiles: Tiles): number => Math.floor(rows / tileRows(tiles)) + count + 2;

/** Where runs begin, by number: 0 are the rows before the first matrix's, count + 1 those after the last one's. */
const runDeclarations = `
fn startOf(run: u32) -> u32 {
  if (run == 0u) { return 0u; }
  if (run > u.count + 1u) { return u.rows; }
  return min(u32(max(runs[run - 1u], 0)), u.rows);
}
fn slotOf(run: u32) -> u32 { return startOf(run) / ROWS + run; }
`;

/** Statements that find the rows [start, end) of a workgroup and the matrix they meet; `terms` is 0 where they meet none. */
const findRun = `
  var run = 0u;
  var last = u.count + 1u;
  while (run < last) {
    let middle = (run + last + 1u) / 2u;
    if (slotOf(middle) <= group.y) { run = middle; } else { last = middle - 1u; }
  }
  let start = startOf(run) + (group.y - slotOf(run)) * ROWS;
  let end = startOf(run + 1u);
  if (start >= end) { return; }
  let met = run >= 1u && run <= u.count;
  let matrix = select(0u, run - 1u, met);
  let terms = select(0u, u.terms, met);`;

const onRuns = (tiles: Tiles, stage: string): string =>
  tiledProduct({ tiles, stage, row0: 'start', rows: 'end', columns: 'u.columns', terms: 'terms', target: 'row * u.columns + column' });

/** x·w[e]ᵀ, or x·w[e] when transposed, over the rows of each run e. */
export function groupedProduct({
  transposed,
  tiles,
}: {
  transposed: boolean;
  tiles: Tiles;
}): Program<'x' | 'w' | 'runs', 'y', GroupedUniform> {
  const ofX = alongTerms('ROWS');
  const ofW = (transposed ? acrossTerms : alongTerms)('COLUMNS');
  const stage = `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofX.line};
      let k = k0 + ${ofX.term};
      var value = 0.0;
      if (row < end && k < u.terms) { value = x[row * u.terms + k]; }
      putA(k - k0, row - row0, value);
    }
    for (var i = lane; i < COLUMNS * DEPTH; i += LANES) {
      let column = column0 + ${ofW.line};
      let k = k0 + ${ofW.term};
      var value = 0.0;
      if (column < u.columns && k < u.terms) { value = w[wStart + ${transposed ? 'k * u.columns + column' : 'column * u.terms + k'}]; }
      putB(k - k0, column - column0, value);
    }`;
  return program({
    key: `grouped-${transposed ? 'T' : 'N'}-${tilesKey(tiles)}`,
    inputs: { x: 'f32', w: 'f32', runs: 'i32' },
    outputs: { y: 'f32' },
    uniforms,
    workgroup: [side, side],
    declarations: tileDeclarations(tiles) + runDeclarations,
    main: `${findRun}
  let wStart = matrix * u.columns * u.terms;
${onRuns(tiles, stage)}`,
  });
}

/** dyᵀ·x over the rows of each run (z): no rows, zeros. */
export function groupedGradient(tiles: Tiles): Program<'dy' | 'x' | 'runs', 'y', 'rows' | 'columns' | 'all'> {
  const ofDy = acrossTerms('ROWS');
  const ofX = acrossTerms('COLUMNS');
  const stage = `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofDy.line};
      let k = k0 + ${ofDy.term};
      var value = 0.0;
      if (row < u.rows && k < terms) { value = dy[(start + k) * u.rows + row]; }
      putA(k - k0, row - row0, value);
    }
    for (var i = lane; i < COLUMNS * DEPTH; i += LANES) {
      let column = column0 + ${ofX.line};
      let k = k0 + ${ofX.term};
      var value = 0.0;
      if (column < u.columns && k < terms) { value = x[(start + k) * u.columns + column]; }
      putB(k - k0, column - column0, value);
    }`;
  return program({
    key: `grouped-gradient-${tilesKey(tiles)}`,
    inputs: { dy: 'f32', x: 'f32', runs: 'i32' },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', all: 'u32' },
    workgroup: [side, side],
    declarations: `${tileDeclarations(tiles)}
fn startOf(run: u32) -> u32 { return min(u32(max(runs[run], 0)), u.all); }`,
    main: `
  let start = startOf(group.z);
  let terms = max(startOf(group.z + 1u), start) - start;
  let yStart = group.z * u.rows * u.columns;
${tiledProduct({ tiles, stage, rows: 'u.rows', columns: 'u.columns', terms: 'terms', target: 'yStart + row * u.columns + column' })}`,
  });
}

/** The uniform that says how many values of a part one matrix has. */
export const sizeName = (part: string): string => `${part}Size`;

/** Shader code with every read of a part, `name[index]`, moved to the section of the workgroup's matrix. */
function inSection(code: string, { inputs, key }: Decoder): string {
  const name = String.raw`\b(${Object.keys(inputs).join('|')})\[`;
  const reads = new RegExp(String.raw`${name}([^[\]]+)\]`, 'g');
  const moved = code.replace(reads, (_, part: string, index: string) => `${part}[section * u.${sizeName(part)} + (${index})]`);
  if (new RegExp(`${name}(?!section )`).test(moved))
    throw new DeviceError(`internal: ${key} reads a part at an index that reads another`, { key });
  return moved;
}

/** `groupedProduct` over packed matrices, whose parts lie after one another in sections. */
export function packedGroupedProduct(variant: TiledVariant): Program<string, 'y', string> {
  const { decoder, tiles } = variant;
  const sizes = Object.fromEntries(Object.keys(decoder.inputs).map((part): [string, Scalar] => [sizeName(part), 'u32']));
  return program<string, 'y', string>({
    key: `packed-grouped-${tiledKey(variant)}`,
    inputs: { x: 'f32', runs: 'i32', ...decoder.inputs },
    outputs: { y: 'f32' },
    uniforms: { ...uniforms, ...sizes },
    workgroup: [side, side],
    declarations: `var<private> section: u32;
${inSection(floatDecoding(decoder), decoder)}
${tileDeclarations(tiles)}${runDeclarations}`,
    main: `${findRun}
  section = matrix;
${inSection(prologueOf(decoder), decoder)}
${onRuns(tiles, packedStage(variant, 'end'))}`,
  });
}
