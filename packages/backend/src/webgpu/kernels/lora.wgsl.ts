import { lanes, program, type Element, type Program } from '../program.ts';

/** Threads that share out one sum, and sums of a workgroup. */
export const dotLanes = 16;
export const dotSums = 16;

/**
 * y[row, r] = scale · Σ over k of x[row, k] · factor, for a few r: factor is a[r, k], or b[k, r] where `across`. A rank is too
 * narrow for tiles: they would leave most of the card idle.
 */
export const loraNarrow = (across: boolean): Program<'x' | 'factor', 'y', 'rows' | 'terms' | 'rank' | 'scale'> =>
  program({
    key: `lora-narrow-${across ? 'across' : 'along'}`,
    inputs: { x: 'f32', factor: 'f32' },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', terms: 'u32', rank: 'u32', scale: 'f32' },
    workgroup: [dotLanes, dotSums],
    declarations: 'var<workgroup> partial: array<f32, LANES>;',
    main: `
  let at = groupIndex * ${dotSums}u + local.y;
  let row = at / u.rank;
  let r = at % u.rank;
  var sum = 0.0;
  if (row < u.rows) {
    for (var k = local.x; k < u.terms; k += ${dotLanes}u) {
      sum = fma(x[row * u.terms + k], factor[${across ? 'k * u.rank + r' : 'r * u.terms + k'}], sum);
    }
  }
  partial[lane] = sum;
  workgroupBarrier();
  if (local.x == 0u && row < u.rows) {
    var total = 0.0;
    for (var i = 0u; i < ${dotLanes}u; i++) { total += partial[local.y * ${dotLanes}u + i]; }
    y[at] = u.scale * total;
  }`,
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
 * A factor's gradient, scale · Σ over rows of inner[row, r] · x[row, column]: at [r, column], or at [column, r] where
 * `across`. Groups are (x: columns, y: ranks).
 */
export const loraFactorGradient = (across: boolean): Program<'x' | 'inner', 'y', 'rows' | 'columns' | 'rank' | 'scale'> =>
  program({
    key: `lora-factor-gradient-${across ? 'across' : 'along'}`,
    inputs: { x: 'f32', inner: 'f32' },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', rank: 'u32', scale: 'f32' },
    workgroup: [gradientColumns, strips],
    declarations: `var<workgroup> partial: array<array<f32, ${ranksEach}>, LANES>;`,
    main: `
  let column = group.x * ${gradientColumns}u + local.x;
  let r0 = group.y * ${ranksEach}u;
  let ranks = min(${ranksEach}u, u.rank - r0);
  var sums: array<f32, ${ranksEach}>;
  if (column < u.columns) {
    for (var row = local.y; row < u.rows; row += ${strips}u) {
      let value = x[row * u.columns + column];
      for (var i = 0u; i < ranks; i++) { sums[i] = fma(inner[row * u.rank + r0 + i], value, sums[i]); }
    }
  }
  partial[lane] = sums;
  workgroupBarrier();
  // A strip of threads adds up the sums of one r.
  if (local.y < ranks && column < u.columns) {
    var total = 0.0;
    for (var strip = 0u; strip < ${strips}u; strip++) { total += partial[strip * ${gradientColumns}u + local.x][local.y]; }
    let r = r0 + local.y;
    y[${across ? 'column * u.rank + r' : 'r * u.columns + column'}] = u.scale * total;
  }`,
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
