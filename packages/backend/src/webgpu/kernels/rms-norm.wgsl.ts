import { program, reduction, type Element, type Program } from '../program.ts';

const lanes = 128;
const sumOf = reduction('sumOf', 'a + b');

/** One workgroup a row: y = x · weight / sqrt(mean(x²) + eps). */
export const rmsNormForward: Program<'x' | 'weight', 'y', 'rows' | 'width' | 'eps'> = program({
  key: 'rms-norm',
  inputs: { x: 'f32', weight: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { rows: 'u32', width: 'u32', eps: 'f32' },
  workgroup: lanes,
  declarations: sumOf,
  main: `
  if (groupIndex >= u.rows) { return; }
  let row = groupIndex * u.width;
  var squares = 0.0;
  for (var i = lane; i < u.width; i += LANES) { squares += x[row + i] * x[row + i]; }
  let scale = inverseSqrt(sumOf(squares, lane) / f32(u.width) + u.eps);
  for (var i = lane; i < u.width; i += LANES) { y[row + i] = x[row + i] * scale * weight[i]; }`,
});

/** The same of a sum, which is kept. A thread reads again only what it wrote itself. */
export const addRmsNormForward: Program<'x' | 'delta' | 'weight', 'total' | 'y', 'rows' | 'width' | 'eps'> = program({
  key: 'add-rms-norm',
  inputs: { x: 'f32', delta: 'f32', weight: 'f32' },
  outputs: { total: 'f32', y: 'f32' },
  uniforms: { rows: 'u32', width: 'u32', eps: 'f32' },
  workgroup: lanes,
  declarations: sumOf,
  main: `
  if (groupIndex >= u.rows) { return; }
  let row = groupIndex * u.width;
  var squares = 0.0;
  for (var i = lane; i < u.width; i += LANES) {
    let sum = x[row + i] + delta[row + i];
    total[row + i] = sum;
    squares += sum * sum;
  }
  let scale = inverseSqrt(sumOf(squares, lane) / f32(u.width) + u.eps);
  for (var i = lane; i < u.width; i += LANES) { y[row + i] = total[row + i] * scale * weight[i]; }`,
});

/**
 * One workgroup a row: dx, and the row's 1 / rms, which the gradient of the weight needs again. With `beside`, dx is added to
 * the gradient that x got elsewhere.
 */
export const rmsNormBackward = (beside: boolean): Program<string, 'dx' | 'reciprocal', 'rows' | 'width' | 'eps'> =>
  program({
    key: `rms-norm-grad${beside ? '-beside' : ''}`,
    inputs: { dy: 'f32', x: 'f32', weight: 'f32', ...(beside ? { beside: 'f32' as const } : {}) } as Record<string, Element>,
    outputs: { dx: 'f32', reciprocal: 'f32' },
    uniforms: { rows: 'u32', width: 'u32', eps: 'f32' },
    workgroup: lanes,
    declarations: sumOf,
    main: `
  if (groupIndex >= u.rows) { return; }
  let row = groupIndex * u.width;
  var squares = 0.0;
  var along = 0.0;
  for (var i = lane; i < u.width; i += LANES) {
    squares += x[row + i] * x[row + i];
    along += dy[row + i] * weight[i] * x[row + i];
  }
  let scale = inverseSqrt(sumOf(squares, lane) / f32(u.width) + u.eps);
  let pull = sumOf(along, lane) / f32(u.width) * scale * scale;
  for (var i = lane; i < u.width; i += LANES) {
    dx[row + i] = ${beside ? 'beside[row + i] + ' : ''}scale * (dy[row + i] * weight[i] - x[row + i] * pull);
  }
  if (lane == 0u) { reciprocal[groupIndex] = scale; }`,
  });

/** Columns and strips of rows that a workgroup sums at a time. */
export const weightColumns = 32;
const strips = 8;

/** dweight = Σ over rows of dy · x / rms: each workgroup owns some columns, its strips of threads share out the rows. */
export const rmsNormWeightGradient: Program<'dy' | 'x' | 'reciprocal', 'dweight', 'rows' | 'width'> = program({
  key: 'rms-norm-weight-grad',
  inputs: { dy: 'f32', x: 'f32', reciprocal: 'f32' },
  outputs: { dweight: 'f32' },
  uniforms: { rows: 'u32', width: 'u32' },
  workgroup: [weightColumns, strips],
  declarations: `var<workgroup> partial: array<f32, LANES>;`,
  main: `
  let column = group.x * ${weightColumns}u + local.x;
  var sum = 0.0;
  if (column < u.width) {
    for (var row = local.y; row < u.rows; row += ${strips}u) {
      let at = row * u.width + column;
      sum += dy[at] * x[at] * reciprocal[row];
    }
  }
  partial[lane] = sum;
  workgroupBarrier();
  if (local.y == 0u && column < u.width) {
    for (var strip = 1u; strip < ${strips}u; strip++) { sum += partial[strip * ${weightColumns}u + local.x]; }
    dweight[column] = sum;
  }`,
});
