/**
 * The tiled product shared by dense and packed matrices: a workgroup of 16 x 16 threads fills a tile of a and a tile of b
 * in shared memory (by whatever staging code the caller writes) and each thread sums a few rows and columns in f32.
 */
export interface Tiles {
  /** Rows of the result that a thread sums: tiles are 16 times as high. */
  readonly rowsEach: 1 | 2 | 4;
  /** Columns a thread sums, 16 apart: tiles are 16 times as wide. */
  readonly columnsEach: 1 | 4;
  /** Terms of the sums staged at a time. */
  readonly depth: number;
}

/** Threads along each side of a workgroup. */
export const side = 16;

export const tileRows = ({ rowsEach }: Tiles): number => side * rowsEach;
export const tileColumns = ({ columnsEach }: Tiles): number => side * columnsEach;

/** Tiles for a result of this size: no higher or wider than it has use for. */
export const tilesFor = (rows: number, columns: number): Tiles => ({
  rowsEach: rows <= side ? 1 : rows <= 2 * side ? 2 : 4,
  columnsEach: columns <= side ? 1 : 4,
  depth: 32,
});

export const tilesKey = ({ rowsEach, columnsEach, depth }: Tiles): string => `${rowsEach}x${columnsEach}x${depth}`;

/**
 * Shared tiles, both stored term by term. Each term's line is turned by its number, so that threads which write down a
 * column and threads which read along a line both spread over the banks of the memory, without padding: two full tiles
 * fit the 16 KiB that every device has.
 */
export const tileDeclarations = (tiles: Tiles): string => `
const ROWS = ${tileRows(tiles)}u;
const COLUMNS = ${tileColumns(tiles)}u;
const DEPTH = ${tiles.depth}u;
var<workgroup> tileA: array<f32, ${tiles.depth * tileRows(tiles)}>;
var<workgroup> tileB: array<f32, ${tiles.depth * tileColumns(tiles)}>;
fn atA(k: u32, row: u32) -> u32 { return k * ROWS + ((row + k) & (ROWS - 1u)); }
fn atB(k: u32, column: u32) -> u32 { return k * COLUMNS + ((column + k) & (COLUMNS - 1u)); }`;

export interface Product {
  readonly tiles: Tiles;
  /** Statements that fill tileA and tileB with the terms [k0, k0 + DEPTH) of the rows from row0 and columns from column0; zeros outside. */
  readonly stage: string;
  /** WGSL expressions of the product's sides. */
  readonly rows: string;
  readonly columns: string;
  readonly terms: string;
  /** The index of (row, column) in the result. */
  readonly target: string;
}

/** The body of `main` for workgroups (x: columns, y: rows). */
export function tiledProduct({ tiles, stage, rows, columns, terms, target }: Product): string {
  const each = Array.from({ length: tiles.rowsEach }, (_, i) => i);
  const wide = tiles.columnsEach === 4;
  const type = wide ? 'vec4<f32>' : 'f32';
  const b = wide ? `vec4<f32>(${[0, 1, 2, 3].map((j) => `tileB[atB(k, local.x + ${j * side}u)]`).join(', ')})` : 'tileB[atB(k, local.x)]';
  const store = (i: number): string => `
  {
    let row = row0 + local.y * ${tiles.rowsEach}u + ${i}u;
    ${Array.from(
      { length: tiles.columnsEach },
      (_, j) => `
    {
      let column = column0 + local.x + ${j * side}u;
      if (row < ${rows} && column < ${columns}) { y[${target}] = sum${i}${wide ? `[${j}]` : ''}; }
    }`,
    ).join('')}
  }`;
  return `
  let row0 = group.y * ROWS;
  let column0 = group.x * COLUMNS;
${each.map((i) => `  var sum${i} = ${type}(0.0);`).join('\n')}
  for (var k0 = 0u; k0 < ${terms}; k0 += DEPTH) {
${stage}
    workgroupBarrier();
    for (var k = 0u; k < DEPTH; k++) {
      let b = ${b};
${each.map((i) => `      sum${i} = fma(${type}(tileA[atA(k, local.y * ${tiles.rowsEach}u + ${i}u)]), b, sum${i});`).join('\n')}
    }
    workgroupBarrier();
  }
${each.map(store).join('')}`;
}
