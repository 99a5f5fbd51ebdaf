import { lanes, program, type Element, type Program } from '../program.ts';
import { denseStage } from './mat-mul.wgsl.ts';
import { floatDecoding, prologueOf } from './packed-decode.wgsl.ts';
import { packedStage, tiledKey, type TiledVariant } from './packed-matmul.wgsl.ts';
import { acrossTerms, alongTerms, side, tileDeclarations, tiledProduct, tilesKey, type Tiles } from './tiles.wgsl.ts';

/** Threads that share out one sum, and sums of a workgroup. */
export const dotLanes = 16;
export const dotSums = 16;

/**
 * A few sums over a long line, for each of a workgroup's lines of threads: target[row, r] = scale · Σ over k of x[row, k] ·
 * factor, which is a[r, k], or b[k, r] where `across`. A rank is too narrow for tiles: they would leave most of the card idle.
 */
const narrowSums = ({
  x,
  factor,
  target,
  terms,
  across,
}: Readonly<Record<'x' | 'factor' | 'target' | 'terms', string>> & { readonly across: boolean }): string => `
  let at = groupIndex * ${dotSums}u + local.y;
  let row = at / u.rank;
  let r = at % u.rank;
  var sum = 0.0;
  if (row < u.rows) {
    for (var k = local.x; k < ${terms}; k += ${dotLanes}u) {
      sum = fma(${x}[row * ${terms} + k], ${factor}[${across ? 'k * u.rank + r' : `r * ${terms} + k`}], sum);
    }
  }
  partial[lane] = sum;
  workgroupBarrier();
  if (local.x == 0u && row < u.rows) {
    var total = 0.0;
    for (var i = 0u; i < ${dotLanes}u; i++) { total += partial[local.y * ${dotLanes}u + i]; }
    ${target}[at] = u.scale * total;
  }`;

const partial = 'var<workgroup> partial: array<f32, LANES>;';

/** y = scale · x·aᵀ, the factor being a. */
export const loraNarrow: Program<'x' | 'factor', 'y', 'rows' | 'terms' | 'rank' | 'scale'> = program({
  key: 'lora-narrow',
  inputs: { x: 'f32', factor: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { rows: 'u32', terms: 'u32', rank: 'u32', scale: 'f32' },
  workgroup: [dotLanes, dotSums],
  declarations: partial,
  main: narrowSums({ x: 'x', factor: 'factor', target: 'y', terms: 'u.terms', across: false }),
});

/** y[row, column] = scale · Σ over r of inner[row, r] · factor, on top of a base where there is one; factor is a[r, column], or b[column, r] where `across`. */
export const loraWide = (base: boolean, across: boolean): Program<string, 'y', 'count' | 'columns' | 'rank' | 'scale'> =>
  program({
    key: `lora-wide-${base ? 'base' : 'plain'}-${across ? 'across' : 'along'}`,
    inputs: (base ? { base: 'f32', inner: 'f32', factor: 'f32' } : { inner: 'f32', factor: 'f32' }) as Record<string, Element>,
    outputs: { y: 'f32' },
    uniforms: { count: 'u32', columns: 'u32', rank: 'u32', scale: 'f32' },
    workgroup: lanes,
    main: `
  if (index >= u.count) { return; }
  let row = index / u.columns;
  let column = index % u.columns;
  var sum = 0.0;
  for (var r = 0u; r < u.rank; r++) {
    sum = fma(inner[row * u.rank + r], factor[${across ? 'column * u.rank + r' : 'r * u.columns + column'}], sum);
  }
  y[index] = ${base ? 'base[index] + u.scale * sum' : 'u.scale * sum'};`,
  });

/** Columns of a workgroup, the strips of rows its threads share out, and the r that a thread sums. */
export const gradientColumns = 16;
export const ranksEach = 8;
const strips = 16;

/**
 * A factor's gradient for a block of columns and one of ranks, numbered by the expressions of `block`: target = scale · Σ over
 * rows of inner[row, r] · x[row, column], at [r, column], or at [column, r] where `across`.
 */
const gradientSums = ({
  x,
  target,
  block,
  across,
}: Readonly<Record<'x' | 'target', string>> & {
  readonly block: readonly [columns: string, ranks: string];
  readonly across: boolean;
}): string => `
  let column = ${block[0]} * ${gradientColumns}u + local.x;
  let r0 = ${block[1]} * ${ranksEach}u;
  let ranks = min(${ranksEach}u, u.rank - r0);
  var sums: array<f32, ${ranksEach}>;
  if (column < u.columns) {
    for (var row = local.y; row < u.rows; row += ${strips}u) {
      let value = ${x}[row * u.columns + column];
      for (var i = 0u; i < ranks; i++) { sums[i] = fma(inner[row * u.rank + r0 + i], value, sums[i]); }
    }
  }
  partials[lane] = sums;
  workgroupBarrier();
  // A strip of threads adds up the sums of one r.
  if (local.y < ranks && column < u.columns) {
    var total = 0.0;
    for (var strip = 0u; strip < ${strips}u; strip++) { total += partials[strip * ${gradientColumns}u + local.x][local.y]; }
    let r = r0 + local.y;
    ${target}[${across ? 'column * u.rank + r' : 'r * u.columns + column'}] = u.scale * total;
  }`;

const partials = `var<workgroup> partials: array<array<f32, ${ranksEach}>, LANES>;`;

/** Of a: scale · Σ over rows of inner[row, r] · x[row, column], at [r, column]. Groups are (x: columns, y: ranks). */
export const loraFactorGradient: Program<'x' | 'inner', 'y', 'rows' | 'columns' | 'rank' | 'scale'> = program({
  key: 'lora-factor-gradient',
  inputs: { x: 'f32', inner: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { rows: 'u32', columns: 'u32', rank: 'u32', scale: 'f32' },
  workgroup: [gradientColumns, strips],
  declarations: partials,
  main: gradientSums({ x: 'x', target: 'y', block: ['group.x', 'group.y'], across: false }),
});

/**
 * What a gradient needs of dy alone: dInner = scale · dy·b in the first `narrow` workgroups, db = scale · dyᵀ·inner in the
 * others, `across` of them a block of ranks.
 */
export const loraInnerGradients: Program<
  'dy' | 'b' | 'inner',
  'dInner' | 'db',
  'rows' | 'columns' | 'rank' | 'narrow' | 'across' | 'scale'
> = program({
  key: 'lora-inner-gradients',
  inputs: { dy: 'f32', b: 'f32', inner: 'f32' },
  outputs: { dInner: 'f32', db: 'f32' },
  uniforms: { rows: 'u32', columns: 'u32', rank: 'u32', narrow: 'u32', across: 'u32', scale: 'f32' },
  workgroup: [gradientColumns, strips],
  declarations: partial + partials,
  main: `
  if (groupIndex < u.narrow) {${narrowSums({ x: 'dy', factor: 'b', target: 'dInner', terms: 'u.columns', across: true })}
    return;
  }
  let own = groupIndex - u.narrow;
  if (own / u.across * ${ranksEach}u >= u.rank) { return; }${gradientSums({ x: 'dy', target: 'db', block: ['(own % u.across)', '(own / u.across)'], across: true })}`,
});

interface Tailed {
  readonly transposed: boolean;
  readonly tiles: Tiles;
}

/**
 * The low-rank part of a product, scale · inner·factor, as more terms of its tiles: factor is b[column, r] beside x·Wᵀ,
 * a[r, column] beside dy·W.
 */
function tailOf(transposed: boolean): { readonly stage: string; readonly terms: string } {
  const ofInner = alongTerms('ROWS');
  const ofFactor = (transposed ? acrossTerms : alongTerms)('COLUMNS');
  return {
    terms: 'u.rank',
    stage: `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofInner.line};
      let r = k0 + ${ofInner.term};
      var value = 0.0;
      if (row < u.rows && r < u.rank) { value = u.scale * inner[row * u.rank + r]; }
      putA(r - k0, row - row0, value);
    }
    for (var i = lane; i < COLUMNS * DEPTH; i += LANES) {
      let column = column0 + ${ofFactor.line};
      let r = k0 + ${ofFactor.term};
      var value = 0.0;
      if (column < u.columns && r < u.rank) { value = factor[${transposed ? 'r * u.columns + column' : 'column * u.rank + r'}]; }
      putB(r - k0, column - column0, value);
    }`,
  };
}

type TailedUniform = 'rows' | 'columns' | 'terms' | 'rank' | 'scale';
const tailedUniforms = { rows: 'u32', columns: 'u32', terms: 'u32', rank: 'u32', scale: 'f32' } as const;
const tailedSides = { rows: 'u.rows', columns: 'u.columns', terms: 'u.terms', target: 'row * u.columns + column' };

/** a·bᵀ, or a·b when transposed, of a dense frozen matrix b, and the low-rank part on top. */
export const loraDenseProduct = ({ transposed, tiles }: Tailed): Program<string, 'y', TailedUniform> =>
  program({
    key: `lora-product-${transposed ? 'T' : 'N'}-${tilesKey(tiles)}`,
    inputs: { a: 'f32', b: 'f32', inner: 'f32', factor: 'f32' } as Record<string, Element>,
    outputs: { y: 'f32' },
    uniforms: tailedUniforms,
    workgroup: [side, side],
    declarations: () => tileDeclarations(tiles),
    main: () =>
      tiledProduct({
        ...tailedSides,
        tiles,
        stage: denseStage({ transposeA: false, transposeB: !transposed }),
        tail: tailOf(transposed),
      }),
  });

/** The same of a packed one. */
export const loraPackedProduct = (variant: TiledVariant): Program<string, 'y', TailedUniform> =>
  program({
    key: `lora-product-${tiledKey(variant)}`,
    inputs: { x: 'f32', ...variant.decoder.inputs, inner: 'f32', factor: 'f32' },
    outputs: { y: 'f32' },
    uniforms: tailedUniforms,
    workgroup: [side, side],
    declarations: () => floatDecoding(variant.decoder) + tileDeclarations(variant.tiles),
    main: () => `${prologueOf(variant.decoder)}
${tiledProduct({ ...tailedSides, tiles: variant.tiles, stage: packedStage(variant, 'u.rows'), tail: tailOf(variant.transposed) })}`,
  });

/** What a mask keeps, divided by its keep-probability; on top of a base where there is one. */
export const loraDropped = (base: boolean): Program<string, 'y', 'count' | 'share'> =>
  program({
    key: `lora-dropped-${base ? 'base' : 'plain'}`,
    inputs: (base ? { base: 'f32', x: 'f32', mask: 'f32' } : { x: 'f32', mask: 'f32' }) as Record<string, Element>,
    outputs: { y: 'f32' },
    uniforms: { count: 'u32', share: 'f32' },
    workgroup: lanes,
    main: `
  if (index >= u.count) { return; }
  y[index] = ${base ? 'base[index] + ' : ''}x[index] * (mask[index] * u.share);`,
  });
