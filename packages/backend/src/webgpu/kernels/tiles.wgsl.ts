/**
 * The tiled product shared by dense and packed matrices: a workgroup of 16 x 16 threads fills a tile of a and a tile of b
 * in shared memory (by whatever staging code the caller writes) and each thread sums a block of rows and columns in f32.
 */
export interface Tiles {
  /** Rows of the result that a thread sums: tiles are 16 times as high. */
  readonly rowsEach: 1 | 2 | 4 | 8;
  /** Columns a thread sums: tiles are 16 times as wide. */
  readonly columnsEach: 1 | 4 | 8;
  /** Terms of the sums staged at a time, a multiple of 8. */
  readonly depth: number;
}

/** Threads along each side of a workgroup. */
export const side = 16;

export const tileRows = ({ rowsEach }: Tiles): number => side * rowsEach;
export const tileColumns = ({ columnsEach }: Tiles): number => side * columnsEach;

/** Workgroups that a large card runs at a time: with fewer, tiles of half the side keep more of it busy. */
const manyGroups = 128;

/** Tiles for a result of this size: no higher or wider than it has use for. Two of them fit the 16 KiB that every device has. */
export function tilesFor(rows: number, columns: number): Tiles {
  if (Math.floor(rows / (8 * side)) * Math.floor(columns / (8 * side)) >= manyGroups) return { rowsEach: 8, columnsEach: 8, depth: 16 };
  return { rowsEach: rows <= side ? 1 : rows <= 2 * side ? 2 : 4, columnsEach: columns <= side ? 1 : 4, depth: 32 };
}

export const tilesKey = ({ rowsEach, columnsEach, depth }: Tiles): string => `${rowsEach}x${columnsEach}x${depth}`;

/**
 * Shared tiles, both stored term by term in words of four neighbors, which a thread reads at once. Each term's line is
 * turned by its number: threads that write down a column, 8 terms of 4 neighbors or runs of 8 terms at a time, then spread
 * over all banks of the memory as well as those that read along a line.
 */
export const tileDeclarations = (tiles: Tiles): string => `
const ROWS = ${tileRows(tiles)}u;
const COLUMNS = ${tileColumns(tiles)}u;
const DEPTH = ${tiles.depth}u;
var<workgroup> tileA: array<vec4<f32>, ${(tiles.depth * tileRows(tiles)) / 4}>;
var<workgroup> tileB: array<vec4<f32>, ${(tiles.depth * tileColumns(tiles)) / 4}>;
fn turn(k: u32) -> u32 { return k + ((k >> 3u) << 1u); }
fn atA(k: u32, quad: u32) -> u32 { return k * (ROWS / 4u) + ((quad + turn(k)) & (ROWS / 4u - 1u)); }
fn atB(k: u32, quad: u32) -> u32 { return k * (COLUMNS / 4u) + ((quad + turn(k)) & (COLUMNS / 4u - 1u)); }
fn putA(k: u32, row: u32, value: f32) { tileA[atA(k, row >> 2u)][row & 3u] = value; }
fn putB(k: u32, column: u32, value: f32) { tileB[atB(k, column >> 2u)][column & 3u] = value; }`;

/**
 * Where entry i of a tile lies whose matrix is stored term by term beside each other: expressions of i for the line (row or
 * column) and the term. Eight terms of four lines a warp: whole sectors are read, and no two threads write to one bank.
 */
export const alongTerms = (lines: 'ROWS' | 'COLUMNS'): { line: string; term: string } => ({
  line: `(i >> 3u) % ${lines}`,
  term: `(i & 7u) + ((i >> 3u) / ${lines}) * 8u`,
});

/** The same for a matrix whose lines lie beside each other. */
export const acrossTerms = (lines: 'ROWS' | 'COLUMNS'): { line: string; term: string } => ({ line: `i % ${lines}`, term: `i / ${lines}` });

export interface Product {
  readonly tiles: Tiles;
  /** Statements that putA and putB the terms [k0, k0 + DEPTH) of the rows from row0 and columns from column0; zeros outside. */
  readonly stage: string;
  /** WGSL expressions of the product's sides. */
  readonly rows: string;
  readonly columns: string;
  readonly terms: string;
  /** The index of (row, column) in the result. */
  readonly target: string;
  /** The first row of a workgroup, default by its number; `rows` then is where its rows end. */
  readonly row0?: string;
  /** An array that the product is added to: its entry at `target`. */
  readonly onto?: string;
  /** Another product of the same rows and columns, added in the same sums after the first one's terms. */
  readonly tail?: Pick<Product, 'stage' | 'terms'>;
}

/** The body of `main` for workgroups (x: columns, y: rows). */
export function tiledProduct({ tiles, stage, rows, columns, terms, target, onto, tail, row0 = 'group.y * ROWS' }: Product): string {
  const [rowBlocks, columnBlocks] = [blocks(tiles.rowsEach, 'local.y'), blocks(tiles.columnsEach, 'local.x')];
  const type = tiles.columnsEach === 1 ? 'f32' : 'vec4<f32>';
  const sums = rowBlocks.flatMap(({ entries }, r) => entries.flatMap((_, i) => columnBlocks.map((__, c) => `sum${r}${i}${c}`)));
  const load = (name: 'A' | 'B', block: Block): string =>
    block.whole ? `tile${name}[at${name}(k, ${block.quad})]` : `tile${name}[at${name}(k, (${block.first}) >> 2u)]`;
  // A block of fewer than four lies within one word.
  const entry = (block: Block, i: number): string => (block.whole ? `[${i}]` : `[(${block.first} + ${i}u) & 3u]`);
  return `
  let row0 = ${row0};
  let column0 = group.x * COLUMNS;
${sums.map((sum) => `  var ${sum} = ${type}(0.0);`).join('\n')}
${
  tail === undefined
    ? `  for (var k0 = 0u; k0 < ${terms}; k0 += DEPTH) {
${stage}`
    : `  let whole = (${terms} + DEPTH - 1u) / DEPTH * DEPTH;
  for (var step = 0u; step < whole + ${tail.terms}; step += DEPTH) {
    if (step < whole) {
      let k0 = step;
${stage}
    } else {
      let k0 = step - whole;
${tail.stage}
    }`
}
    workgroupBarrier();
    for (var k = 0u; k < DEPTH; k++) {
${rowBlocks.map((block, r) => `      let a${r} = ${load('A', block)};`).join('\n')}
${columnBlocks.map((block, c) => `      let b${c} = ${load('B', block)}${block.whole ? '' : entry(block, 0)};`).join('\n')}
${rowBlocks
  .flatMap((block, r) =>
    block.entries.flatMap((_, i) =>
      columnBlocks.map((__, c) => `      sum${r}${i}${c} = fma(${type}(a${r}${entry(block, i)}), b${c}, sum${r}${i}${c});`),
    ),
  )
  .join('\n')}
    }
    workgroupBarrier();
  }
${rowBlocks
  .flatMap((rowBlock, r) =>
    rowBlock.entries.map(
      (_, i) => `  if (row0 + ${rowBlock.first} + ${i}u < ${rows}) {
    let row = row0 + ${rowBlock.first} + ${i}u;
${columnBlocks
  .flatMap((block, c) =>
    block.entries.map(
      (__, j) => `    {
      let column = column0 + ${block.first} + ${j}u;
      if (column < ${columns}) { y[${target}] = ${onto === undefined ? '' : `${onto}[${target}] + `}sum${r}${i}${c}${block.whole ? `[${j}]` : ''}; }
    }`,
    ),
  )
  .join('\n')}
  }`,
    ),
  )
  .join('\n')}`;
}

/** Neighbors that a thread sums: one word of four, or fewer. */
interface Block {
  readonly whole: boolean;
  /** The first one's place in the tile, and its word's. */
  readonly first: string;
  readonly quad: string;
  readonly entries: readonly number[];
}

function blocks(each: number, thread: string): Block[] {
  if (each < 4) {
    const entries = Array.from({ length: each }, (_, i) => i);
    return [{ whole: false, first: `${thread} * ${each}u`, quad: '', entries }];
  }
  return Array.from({ length: each / 4 }, (_, block) => ({
    whole: true,
    first: `(${thread} + ${block * side}u) * 4u`,
    quad: `${thread} + ${block * side}u`,
    entries: [0, 1, 2, 3],
  }));
}
